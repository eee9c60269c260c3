"""Masks of any pattern: valid steps move to the front, and their outputs back.

Masked steps then stand behind all valid steps. There they change neither the outputs of
valid steps nor the state after the last valid step. So convolution and pooling need no
mask.
"""

import keras
from keras import ops
from keras.src.backend import get_keras_mask

from keras_qrnn._types import Shape, Tensor
from keras_qrnn.ops.scan import checked_at_run_time

BACKEND = keras.config.backend()


def mask_of(
    sequences: Tensor, mask: Tensor | None, name: str = "mask"
) -> Tensor | None:
    """`mask`, or the mask that `sequences` carries if `mask` is None.

    Keras passes a carried mask only to a call with one tensor argument. A call with an
    `initial_state` has several.

    Args:
        sequences: tensor of shape `(batch, time, features)`.
        mask: tensor of shape `(batch, time)` or `(batch, time, 1)`, or None.
        name: name of the argument, for the message.

    Returns:
        A bool tensor of shape `(batch, time)`, or None if there is no mask. For a
        `keras.KerasTensor` only the shape is checked.

    Raises:
        ValueError: if the mask has another shape.
    """
    if mask is None:
        mask = get_keras_mask(sequences)
    if mask is None:
        return None
    symbolic = isinstance(mask, keras.KerasTensor)
    if not symbolic:
        mask = ops.cast(ops.convert_to_tensor(mask), "bool")
    expected = tuple(sequences.shape[:2])
    received = tuple(mask.shape)
    with_axis = len(received) == 3 and received[2] == 1
    if not fits(received[:2] if with_axis else received, expected):
        raise ValueError(
            f"Argument `{name}` must have shape (batch, time) = {expected} or "
            f"(batch, time, 1). Received: {name}.shape={received}"
        )
    if symbolic:
        return mask
    mask = mask[:, :, 0] if with_axis else mask
    other = "encoder_outputs" if name == "encoder_mask" else "sequences"
    return checked_at_run_time(name, mask, sequences, 2, other)


def fits(shape: Shape, expected: Shape) -> bool:
    """Whether two shapes can be equal. None stands for any size."""
    return len(shape) == len(expected) and all(
        a is None or b is None or a == b for a, b in zip(shape, expected, strict=True)
    )


def compact(sequences: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Moves the valid steps of each sequence to its front.

    Args:
        sequences: tensor of shape `(batch, time, features)`.
        mask: bool tensor of shape `(batch, time)`.

    Returns:
        The sequences, with zeros behind their valid steps, and the number of valid
        steps, an int32 tensor of shape `(batch,)`. The values of masked steps are not
        in the result, and their gradient is zero.
    """
    time = ops.shape(sequences)[1]
    sequences = joined([sequences, ops.zeros_like(sequences[:, :1])])
    sequences = steps_at(_valid_first(mask, time), sequences)
    return sequences, ops.sum(ops.cast(mask, "int32"), axis=1)


def _valid_first(mask: Tensor, time: int | Tensor) -> Tensor:
    """The indices of the valid steps in their order, then `time` for each masked one.

    `compact` appends a step of zeros, which has the index `time`. Moving it to the
    masked steps is faster than replacing each of their values.
    """
    if BACKEND == "jax":
        from keras_qrnn.ops import jax_onnx

        if jax_onnx.is_exporting_to_onnx():
            return jax_onnx.valid_first(mask)
    if BACKEND == "torch":
        import torch

        from keras_qrnn.ops.torch import recorded

        if torch.compiler.is_exporting() and not recorded.may_change(time):
            return recorded.valid_first(mask)
    steps = arange(time)
    is_masked = ops.cast(ops.logical_not(mask), "int32")
    # Equal keys are the same step, so any sort will do: ONNX has no stable sort.
    return ops.sort(steps + (time - steps) * is_masked, axis=1)


def expand(outputs: Tensor, mask: Tensor, previous_output: Tensor) -> Tensor:
    """Moves the outputs of compacted sequences back to their steps.

    Args:
        outputs: tensor of shape `(batch, time, units)`, valid steps first.
        mask: bool tensor of shape `(batch, time)`.
        previous_output: tensor of shape `(batch, units)`.

    Returns:
        A tensor of the shape of `outputs`. A masked step gets the output of the last
        valid step before it, or `previous_output` if there is no valid step before it.
    """
    outputs = joined([previous_output[:, None], outputs])
    position = ops.cumsum(ops.cast(mask, "int32"), axis=1)
    return steps_at(position, outputs)


def in_front(time: int | Tensor, valid: Tensor) -> Tensor:
    """Which steps of compacted sequences are valid: bool, `(batch, time, 1)`.

    Args:
        time: the number of steps.
        valid: the number of valid steps, `(batch,)`.
    """
    return arange(time)[None, :, None] < valid[:, None, None]


def arange(time: int | Tensor) -> Tensor:
    """The numbers of `time` steps, int32."""
    if BACKEND == "jax":
        from jax import lax

        return lax.iota("int32", time)  # jax2onnx converts no `jnp.arange`
    return ops.arange(time, dtype="int32")


def last_valid(outputs: Tensor, valid: Tensor, previous_output: Tensor) -> Tensor:
    """The last step of what `expand` returns, `(batch, units)`.

    Args:
        outputs: tensor of shape `(batch, time, units)`, valid steps first.
        valid: the number of valid steps, `(batch,)`.
        previous_output: tensor of shape `(batch, units)`.
    """
    last = steps_at(ops.maximum(valid - 1, 0)[:, None], outputs)[:, 0]
    return ops.where(valid[:, None] > 0, last, previous_output)


def joined(sequences: list[Tensor]) -> Tensor:
    """Sequences one after another in time. On PyTorch the memory is time-major."""
    if BACKEND == "jax":
        from jax import lax

        # In an export by jax2onnx `jnp.concatenate` loses a number of steps that is
        # not known.
        return lax.concatenate(sequences, 1)
    if BACKEND != "torch":
        return ops.concatenate(sequences, axis=1)
    import torch

    return torch.cat([each.transpose(0, 1) for each in sequences]).transpose(0, 1)


def steps_at(position: Tensor, sequences: Tensor) -> Tensor:
    """The steps of `sequences` at `position`, an int tensor `(batch, steps)`."""
    if BACKEND == "jax" or BACKEND == "numpy":
        return ops.take_along_axis(sequences, position[:, :, None], axis=1)
    # On these two backends Keras's function would look up each feature by itself, which
    # takes several times as long.
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.gather(sequences, position, batch_dims=1)
    import torch

    batch, _, features = sequences.shape
    steps = position.shape[1]
    # One vector of features for each step and sequence, time-major in memory.
    vectors = sequences.transpose(0, 1).reshape(-1, features)
    at = position.long() * batch + torch.arange(batch, device=position.device)[:, None]
    vectors = vectors.index_select(0, at.transpose(0, 1).reshape(-1))
    return vectors.view(steps, batch, features).transpose(0, 1)


def apart(steps: Tensor, sequences: Tensor, count: int) -> Tensor:
    """`steps`, which are `count` of the steps of `sequences`, in memory of their own.

    On PyTorch and NumPy a slice is a view. A user who keeps it would keep the whole
    sequences in memory.
    """
    if BACKEND == "numpy":
        return steps.copy()
    if BACKEND == "torch":
        import torch

        # A copy takes time, and saves none of the memory if most of it is in use.
        if torch.compiler.is_compiling() or sequences.shape[1] > 2 * count:
            return steps.clone()
    return steps


def last_steps(inputs: Tensor, valid: Tensor | None, count: int) -> Tensor:
    """The last `count` steps: the window state after a sequence.

    Args:
        inputs: tensor of shape `(batch, count + time, features)`: the window state
            before the sequence, then the sequence, compacted where it is masked.
        valid: the number of valid steps, of shape `(batch,)`, or None for all.

    Returns:
        A tensor of shape `(batch, count, features)`.
    """
    batch, time, features = ops.shape(inputs)
    if valid is None:
        last = apart(inputs[:, time - count :], inputs, count)
    else:
        position = valid[:, None] + arange(count)[None]
        last = steps_at(position, inputs)
    if last.shape[1] is None:
        # TensorFlow's loops need to know that a state keeps its shape.
        last = ops.reshape(last, (batch, count, features))
    return last
