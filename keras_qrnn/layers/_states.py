"""The states of a layer: their checks, and where they are kept between calls."""

from typing import Any

import keras
from keras import ops

from keras_qrnn._types import Shape, Tensor
from keras_qrnn.layers._masks import fits


class KeptStates:
    """For a layer that keeps its last states: they are variables, but no weights.

    Keras tracks them, so that on JAX, too, a training step hands them on. They are
    not among `weights`: they belong to a run and its batch size, not to the model.

    The layer has an attribute `states`, a list of `keras.Variable` or None.
    """

    @property
    def weights(self) -> list[keras.Variable]:
        """All weights; the kept states are not among them."""
        kept = {id(state) for state in self.states or ()}
        return [weight for weight in super().weights if id(weight) not in kept]


def checked_states(
    initial_state: Tensor | list[Tensor] | None, shapes: dict[str, Shape]
) -> list[Tensor]:
    """The given states as a list; an empty one where None is given.

    Args:
        initial_state: the first state of `shapes`, or a list of it or of all.
        shapes: the shape of each state, by its name.

    Raises:
        ValueError: if the number of states or a shape is another.
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
    received = [None if state is None else tuple(state.shape) for state in given]
    expected = list(shapes.values())[: len(given)]
    if (
        len(given) in {1, len(shapes)}
        and None not in received
        and all(map(fits, received, expected))  # type: ignore[arg-type]
    ):
        return given

    states = " and ".join(f"the {name} {shape}" for name, shape in shapes.items())
    message = (
        "Argument `initial_state` of a QRNN must be the cell state alone or, as a "
        f"list, {states}. Received: "
    )
    message += f"{len(given)} states of the shapes {received}" if given else "[]"
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


def as_value(state: Tensor, dtype: str) -> Tensor:
    """`state`, which may be a variable, as a tensor of `dtype`."""
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        if not isinstance(state, keras.Variable):
            # A gradient written by hand takes no `tf.Variable` as an argument.
            state = tf.convert_to_tensor(state)
    return ops.cast(ops.convert_to_tensor(state), dtype)


def check_batch_size(sequences: Tensor, expected: int) -> Tensor:
    """`sequences`, which must have as many rows as the kept states.

    Raises:
        ValueError: if their number is known and another. In a graph of TensorFlow,
            where it may be unknown, the graph's own error says so when it runs.
    """
    batch = sequences.shape[0]
    message = (
        "The batch size of a stateful QRNN must not change: leave out the samples "
        f"that do not fill a batch. Expected: {expected}. Received: "
    )
    if batch is not None and batch != expected:
        raise ValueError(f"{message}sequences.shape={tuple(sequences.shape)}")
    if batch is None and keras.config.backend() == "tensorflow":
        import tensorflow as tf

        rows = tf.shape(sequences)[0]
        right = tf.debugging.Assert(rows == expected, [message, rows])
        with tf.control_dependencies([right]):
            # XLA leaves assertions out, but compiles this one, and its error has
            # the operation's name.
            return tf.ensure_shape(
                sequences,
                (expected, *sequences.shape[1:]),
                name="batch_size_of_a_stateful_QRNN_must_not_change",
            )
    return sequences
