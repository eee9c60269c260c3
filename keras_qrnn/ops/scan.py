"""The public scan: it checks its arguments and calls the active backend."""

from typing import Any

import keras
from keras import ops

from keras_qrnn._types import Tensor
from keras_qrnn.ops.backend import backend

IS_TENSORFLOW = keras.config.backend() == "tensorflow"


def linear_scan(
    decay: Tensor,
    inputs: Tensor,
    initial_state: Tensor | None = None,
    reverse: bool = False,
) -> Tensor:
    """First-order linear recurrence along the time axis.

    It computes `h[t] = decay[t] * h[t - 1] + inputs[t]`, elementwise. With
    `reverse=True` it runs from the last step to the first. This is the only sequential
    part of a QRNN: its three poolings are this function with different arguments
    (arXiv 1611.01576, section 2.1).

    The gradient is written by hand. It is the same recurrence in the other direction,
    so it costs one more scan. It can be differentiated again. Arguments of half
    precision are accumulated in float32.

    On a GPU, and where time is cut into blocks, decays of many steps are multiplied.
    These products must be finite. In float32, 39 decays of 10 have an infinite product.
    The states are then infinite or NaN, even where the true states are finite.

    Args:
        decay: float tensor of shape `(batch, time, units)`.
        inputs: float tensor of the shape and dtype of `decay`.
        initial_state: float tensor of shape `(batch, units)`, the state before
            the first step. Defaults to zeros.
        reverse: Boolean, whether to scan from the last step to the first.

    Returns:
        The states `h`, of the shape and dtype of `inputs`.

    Raises:
        ValueError: if a rank, shape or dtype is not as above, or if there is no step.

    Example:

    >>> decay = np.full((1, 4, 1), 0.5, "float32")
    >>> np.ravel(linear_scan(decay, np.ones((1, 4, 1), "float32")))
    array([1.   , 1.5  , 1.75 , 1.875], dtype=float32)
    """
    decay, inputs = as_tensor(decay), as_tensor(inputs)
    check_sequence("inputs", inputs)
    check_same("decay", decay, "inputs", inputs)
    decay = checked_at_run_time("decay", decay, inputs, 3, "inputs")
    initial_state = state_or_zeros(initial_state, inputs, inputs.shape[-1])
    return backend.linear_scan(decay, inputs, initial_state, reverse)


def as_tensor(x: Tensor) -> Tensor:
    """`x` as a tensor of the backend.

    A tensor is returned unchanged. Keras's NumPy backend would convert a float64 tensor
    to float32.

    Raises:
        ValueError: if `x` is symbolic.
    """
    if isinstance(x, keras.KerasTensor):
        raise ValueError(
            "Scans and poolings compute on tensors that have values. Expected a call "
            "from within a layer. Received the symbolic input of a model, of shape "
            f"{x.shape}"
        )
    return x if ops.is_tensor(x) else ops.convert_to_tensor(x)


def check_sequence(name: str, tensor: Tensor) -> None:
    if len(tensor.shape) != 3 or tensor.shape[1] == 0:
        raise ValueError(
            f"Argument `{name}` must have shape (batch, time, units) with at "
            f"least one time step. Received: {name}.shape={tuple(tensor.shape)}"
        )
    if not keras.backend.is_float_dtype(keras.backend.standardize_dtype(tensor.dtype)):
        raise ValueError(
            f"Argument `{name}` must have a float dtype. "
            f"Received: {name}.dtype={tensor.dtype}"
        )


def check_same(
    name: str,
    tensor: Tensor,
    other_name: str,
    other: Tensor,
) -> None:
    same = len(tensor.shape) == len(other.shape) and all(
        a is None or b is None or a == b
        for a, b in zip(tensor.shape, other.shape, strict=True)
    )
    if not same or tensor.dtype != other.dtype:
        raise ValueError(
            f"Arguments `{name}` and `{other_name}` must have the same shape and "
            f"dtype. Received: {name} of {tuple(tensor.shape)}, {tensor.dtype} and "
            f"{other_name} of {tuple(other.shape)}, {other.dtype}"
        )


def state_or_zeros(state: Tensor | None, sequence: Tensor, units: int) -> Tensor:
    """`state` as a tensor of shape `(batch, units)`, or zeros if it is None.

    Raises:
        ValueError: if `state` has another shape.
    """
    if state is None:
        return ops.zeros((ops.shape(sequence)[0], units), sequence.dtype)
    state = as_tensor(state)
    expected = (sequence.shape[0], units)
    if len(state.shape) != 2 or any(
        a is not None and b is not None and a != b
        for a, b in zip(state.shape, expected, strict=True)
    ):
        raise ValueError(
            "Argument `initial_state` must have shape (batch, units) = "
            f"{expected}. Received: initial_state.shape={tuple(state.shape)}"
        )
    return checked_at_run_time("initial_state", state, sequence, 1, "inputs")


def checked_at_run_time(
    name: str,
    tensor: Tensor,
    sequences: Tensor,
    axes: int = 1,
    other: str = "sequences",
) -> Tensor:
    """`tensor`, whose first sizes are those of `sequences` also where they are unknown.

    A graph of TensorFlow learns a size that is None only when it runs. There a size of
    1 would be repeated without an error: so the graph checks the sizes when it runs.

    Args:
        name: name of the argument, for the message.
        tensor: its shape was checked, as far as it is known.
        sequences: `(batch, time, features)`.
        axes: how many sizes must be equal: 1 for the batch size, 2 for time as well.
        other: name of the argument that `sequences` are.
    """
    if not IS_TENSORFLOW:
        return tensor
    if None not in (*tensor.shape[:axes], *sequences.shape[:axes]):
        return tensor
    import tensorflow as tf

    expected, received = (tf.shape(each)[:axes] for each in (sequences, tensor))
    what = ("batch size", "batch size and number of steps", "sizes")[axes - 1]
    message = f"Argument `{name}` must have the {what} of `{other}`,"
    parts = [message, expected, "Received:", received]
    checked = with_sizes_of(sequences, tensor, axes, parts, f"{name}_must_fit_{other}")
    if name in ("initial_state", "previous_output"):
        # A loop that carries it needs the shape that it gave.
        checked.set_shape(tensor.shape)
    return checked


def with_sizes_of(
    sequences: Tensor, tensor: Tensor, axes: int, message: list[Any], operation: str
) -> Tensor:
    """`tensor`, from a graph of TensorFlow that fails where its first sizes are others.

    A size that is None in `sequences` is None in the result. An operation that knew it
    could fail before the check, with a message that does not name the argument.

    Args:
        sequences: `(batch, time, features)`.
        tensor: a tensor of `axes` axes or more.
        axes: how many sizes must be equal.
        message: the parts of the error's message, strings and tensors.
        operation: name of the operation that fails in XLA, which drops assertions.
    """
    import tensorflow as tf

    sizes, shape = tf.shape(sequences)[:axes], tf.shape(tensor)
    known = (*sequences.shape[:axes], *tensor.shape[axes:])
    is_right = tf.debugging.Assert(tf.reduce_all(shape[:axes] == sizes), message)
    with tf.control_dependencies([is_right]):
        checked = tensor
        # One axis at a time: all at once would take a transposed tensor.
        for axis in range(axes):
            first = tf.concat([sizes[: axis + 1], shape[axis + 1 :]], axis=0)
            checked = tf.reshape(checked, first, name=operation)
            if known[axis] is None and tensor.shape[axis] is not None:
                # This cuts nothing off. The size is now unknown.
                checked = checked[(slice(None),) * axis + (slice(sizes[axis]),)]
    checked.set_shape(known)
    return checked
