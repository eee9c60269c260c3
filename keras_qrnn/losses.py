"""Losses of the models, alone and where replicas share a batch."""

import contextlib
import contextvars
from collections.abc import Iterator

import keras
from keras import ops

from keras_qrnn._types import Tensor
from keras_qrnn.ops.backend import backend

# Whether the processes of `torch.distributed` share each batch.
_processes_share = contextvars.ContextVar("_processes_share", default=False)


def token_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The cross-entropy of each token, in nats.

    `keras.ops.sparse_categorical_crossentropy` gives the same numbers. It makes one-hot
    targets on some backends, and passes over the logits, the largest tensor of a
    language model, several times on all. `benchmarks/lm.py` times both, as the parts
    "softmax" and "softmax of Keras". This one stays as long as it is the faster one.

    Args:
        logits: float tensor of shape `(batch, time, vocab_size)`. Half precision is
            cast to float32.
        targets: int tensor of shape `(batch, time)`, each in `[0, vocab_size)`.

    Returns:
        A float32 tensor of shape `(batch, time)`.
    """
    logits, targets = ops.cast(logits, "float32"), ops.convert_to_tensor(targets)
    return backend.cross_entropy(logits, targets)


def sampled_token_cross_entropy(
    target_logits: Tensor,
    sample_logits: Tensor,
    targets: Tensor,
    sample: Tensor,
    log_probabilities: Tensor,
) -> Tensor:
    """An estimate of the cross-entropy of each token from a sample of the words.

    A softmax divides by a sum over all words. Here that sum is estimated from the
    target and the sampled words. Each sampled word counts `1 / probability` times
    (Bengio and Senecal 2008; Jean et al., arXiv 1412.2007). The estimated sum is right
    on average. Its logarithm, and so the cross-entropy, is too low on average. With all
    words sampled both are exact.

    Args:
        target_logits: float tensor of shape `(tokens,)`, the targets' logits.
        sample_logits: float tensor of shape `(tokens, size)`, those of the sample.
        targets: int tensor of shape `(tokens,)`.
        sample: int tensor of shape `(size,)`, different words.
        log_probabilities: float32 tensor of shape `(size,)`, the logarithm of the
            probability with which each word is sampled.

    Returns:
        A float32 tensor of shape `(tokens,)`, in nats.
    """
    target_logits = ops.cast(target_logits, "float32")
    is_target = ops.equal(sample, ops.expand_dims(targets, -1))
    others = ops.cast(sample_logits, "float32") - log_probabilities
    others = ops.logsumexp(ops.where(is_target, -1e30, others), axis=-1)
    return ops.softplus(others - target_logits)


def part_of_weighted_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """A replica's part of the mean of `values` over the whole batch.

    Args:
        values: float tensor of any shape, those of this replica.
        weights: tensor of as many elements, or None for ones. Where all are 0, the
            mean is 0.

    Returns:
        A float32 scalar. With one replica it is the mean.
    """
    values = ops.cast(values, "float32")
    if weights is None:
        weights = ops.ones_like(values)
    weights = ops.reshape(ops.cast(weights, "float32"), ops.shape(values))
    total = sum_over_replicas(ops.sum(weights))
    return _as_loss(ops.divide_no_nan(ops.sum(values * weights), total))


def part_of_mean(value: Tensor) -> Tensor:
    """A replica's part of the mean over the replicas of `value`, a scalar of each.

    With one replica it is `value`.
    """
    return _as_loss(value / replicas())


def _as_loss(value: Tensor) -> Tensor:
    """The loss that a replica returns, so that its gradient is right.

    TensorFlow adds up the gradients of its replicas. PyTorch takes their mean.

    Args:
        value: a scalar. The sum of those of all replicas is the loss of the batch.
    """
    return value * replicas() if _processes_share.get() else value


def replicas() -> int:
    """How many replicas share a batch: under `tf.distribute` and in `ddp`, else 1."""
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        return tf.distribute.get_strategy().num_replicas_in_sync
    if _processes_share.get():
        import torch.distributed

        return torch.distributed.get_world_size()
    return 1


def sum_over_replicas(value: Tensor) -> Tensor:
    """The sum of a value over the replicas that share a batch. It has no gradient."""
    if replicas() == 1:
        return value
    if _processes_share.get():
        import torch.distributed

        total = value.detach().clone()
        torch.distributed.all_reduce(total)
        return total
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    if context is None:  # outside of the replicas
        return value
    return tf.stop_gradient(context.all_reduce(tf.distribute.ReduceOp.SUM, value))


@contextlib.contextmanager
def processes_share_batches() -> Iterator[None]:
    """While it lasts, the processes of `torch.distributed` share each batch."""
    token = _processes_share.set(True)
    try:
        yield
    finally:
        _processes_share.reset(token)
