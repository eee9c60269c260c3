"""Losses of the models."""

import keras
from keras import ops

from keras_qrnn._types import Tensor
from keras_qrnn.ops.backend import backend


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


def replicas() -> int:
    """How many replicas share a batch: under `tf.distribute`, else 1.

    TensorFlow adds up the losses and gradients of its replicas. A mean over the rows
    of the whole batch is a replica's sum divided by the rows of all replicas.
    """
    if keras.config.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync
