"""The states of a layer: their checks, and their variables between calls."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_qrnn._types import Shape, Tensor
from keras_qrnn.layers._masks import BACKEND, fits
from keras_qrnn.ops.scan import with_sizes_of

_BATCH_SIZE_MUST_NOT_CHANGE = (
    "The batch size of a stateful layer must not change: leave out the samples that do "
    "not fill a batch."
)
# The names of the variables in `KeptStates.kept`: those of a QRNN, those of an LSTM.
KEPT_NAMES = ("cell_state", "window_state", "last_output", "rnn_state")

TORCH_DTYPES: dict[str, Any] = {}
if BACKEND == "torch":
    import torch
    from keras.src.backend.torch.core import get_device

    for _name in ("float16", "bfloat16", "float32", "float64"):
        TORCH_DTYPES[_name] = getattr(torch, _name)


class KeptStates:
    """A base of layers that keep their last states as variables.

    Keras tracks the variables, so a training step writes them back on JAX too. They are
    not among `weights`: they belong to a run and its batch size, not to the model.

    The layer has an attribute `states`, a list of `keras.Variable` or None.
    """

    name: str

    @property
    def kept(self) -> list[keras.Variable]:
        """The variables that one call keeps for the next. May be empty."""
        return list(self.states or ())

    @property
    def weights(self) -> list[keras.Variable]:
        """All weights, without the variables in `kept`."""
        kept = {id(state) for state in self.kept}
        return [weight for weight in super().weights if id(weight) not in kept]


def checked_states(
    initial_state: Tensor | list[Tensor] | None,
    shapes: dict[str, Shape],
    owner: str,
) -> list[Tensor]:
    """The given states as a list. The list is empty if `initial_state` is None.

    Args:
        initial_state: one state, a list of one state, or a list of all states. One
            state is the first of `shapes`.
        shapes: the expected shape of each state, by name.
        owner: the layer, for the message: "a QRNN".

    Raises:
        ValueError: if the number of states or a shape does not fit `shapes`.
    """
    if initial_state is None:
        return []
    is_list = isinstance(initial_state, (list, tuple))
    each: list[Any] = list(initial_state) if is_list else [initial_state]
    given = [
        state
        if state is None or hasattr(state, "shape")
        else ops.convert_to_tensor(state)
        for state in each
    ]
    received = shapes_of(given)
    expected = list(shapes.values())[: len(given)]
    if (
        len(given) in {1, len(shapes)}
        and None not in received
        and all(map(fits, received, expected))  # type: ignore[arg-type]
    ):
        return given

    states = " and ".join(f"the {name} {shape}" for name, shape in shapes.items())
    message = (
        f"Argument `initial_state` of {owner} must be the cell state alone or, as a "
        f"list, {states}. Received: "
    )
    message += f"states of the shapes {received}" if given else "[]"
    if len(given) > 1 and received[1] is not None and len(received[1]) == 2:
        message += (
            ". If these are the states [h, c] of an LSTM's code: the state of a QRNN "
            "is its cell and, for window > 1, its last inputs; it has no h. A decoder "
            "starts from the encoder's cell alone: `initial_state=cell`"
        )
    if len(given) == len(shapes) + 1 > 2:
        message += (
            ". The previous output is an argument of its own: `previous_output=...`"
        )
    raise ValueError(message)


def shapes_of(states: Sequence[Tensor | None]) -> list[Shape | None]:
    """The shape of each state. None for None, and for a list of states."""
    return [None if state is None else _shape_of(state) for state in states]


def _shape_of(state: Tensor) -> Shape | None:
    if hasattr(state, "shape"):
        return tuple(state.shape)
    try:
        return np.shape(state)
    except (TypeError, ValueError):  # tensors of several shapes, or not of NumPy
        return None


def check_time(sequences: Tensor) -> None:
    """Checks that `sequences` has a step.

    Raises:
        ValueError: if it is known to have none.
    """
    if sequences.shape[1] == 0:
        raise ValueError(
            "The inputs to QRNN must have at least one time step. "
            f"Received: sequences.shape={tuple(sequences.shape)}"
        )


def result_specs(
    layer: keras.layers.Layer, shapes: Shape | tuple[Shape, ...]
) -> Tensor | tuple[Tensor, ...]:
    """What a symbolic call of `layer` returns.

    Args:
        layer: a layer with `return_state`.
        shapes: what its `compute_output_shape` returned.
    """
    if not layer.return_state:
        return keras.KerasTensor(shapes, layer.compute_dtype)
    output, *states = shapes
    return (
        keras.KerasTensor(output, layer.compute_dtype),
        *(keras.KerasTensor(state, layer.variable_dtype) for state in states),
    )


def as_value(state: Tensor, dtype: str, device_of: Tensor | None = None) -> Tensor:
    """`state`, which may be a variable, as a tensor of the dtype with this name.

    On PyTorch this is much of what a small layer costs. So it asks Keras for as little
    as possible.

    Args:
        state: a tensor or a variable.
        dtype: name of the dtype.
        device_of: a tensor. A variable is moved to its device. Within
            `keras.device("cpu")` the weights of a layer may be on a GPU.
    """
    if BACKEND == "torch":
        if isinstance(state, keras.Variable):
            state = state.value
            if device_of is not None and state.device != device_of.device:
                state = state.to(device_of.device)
        if ops.is_tensor(state) and state.dtype is TORCH_DTYPES.get(dtype):
            return state
    if BACKEND == "tensorflow":
        import tensorflow as tf

        if not isinstance(state, keras.Variable):
            # A gradient written by hand takes no `tf.Variable` as an argument.
            state = tf.convert_to_tensor(state)
    # Keras's NumPy backend would round a float64 array to float32 on converting it.
    if not ops.is_tensor(state):
        state = ops.convert_to_tensor(state)
    return ops.cast(state, dtype)


def on_device(sequences: Tensor) -> Tensor:
    """`sequences` on the kind of device where Keras's own layers compute."""
    if BACKEND != "torch":
        return sequences
    device = str(get_device())
    # An export would keep a move that changes nothing.
    is_there = sequences.device.type == device.partition(":")[0]
    return sequences if is_there else sequences.to(device)


def rows(sequences: Tensor) -> int | Tensor:
    """The number of rows. A graph of TensorFlow may learn it only when it runs."""
    batch = sequences.shape[0]
    return ops.shape(sequences)[0] if batch is None else batch


def check_batch_size(sequences: Tensor, expected: int) -> None:
    """Checks the batch size of `sequences` against that of the kept states.

    Raises:
        ValueError: if the two are known and differ.
    """
    if sequences.shape[0] not in (None, expected):
        raise ValueError(
            f"{_BATCH_SIZE_MUST_NOT_CHANGE} Expected: {expected}. Received: "
            f"sequences.shape={tuple(sequences.shape)}"
        )


def with_rows_of(sequences: Tensor, states: list[Tensor]) -> list[Tensor]:
    """Copies of the kept states, for a batch of the same size.

    On PyTorch the variables change before a gradient is taken: so they are copied. A
    graph of TensorFlow may not know the batch size: then it checks it when it runs.

    Raises:
        ValueError: if `sequences` has another batch size than the kept states.
    """
    expected = states[0].shape[0]
    check_batch_size(sequences, expected)
    if sequences.shape[0] is not None:
        return [ops.copy(state) for state in states]
    import tensorflow as tf

    message = f"{_BATCH_SIZE_MUST_NOT_CHANGE} Expected: {expected}. Received:"
    parts = [message, tf.shape(sequences)[:1]]
    operation = "batch_size_of_a_stateful_layer_must_not_change"
    values = map(tf.convert_to_tensor, states)
    return [with_sizes_of(sequences, each, 1, parts, operation) for each in values]


def zeros(shape: tuple[Tensor, ...], dtype: str, sequences: Tensor) -> Tensor:
    """Zeros. In JAX's `shard_map` they vary along the axes of `sequences`."""
    if BACKEND == "jax":
        import jax.numpy as jnp

        return jnp.full_like(sequences, 0, dtype=dtype, shape=shape)
    if BACKEND == "torch":
        device = sequences.device
        return torch.zeros(shape, dtype=TORCH_DTYPES[dtype], device=device)
    return ops.zeros(shape, dtype)
