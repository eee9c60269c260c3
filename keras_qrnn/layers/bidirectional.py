"""A bidirectional wrapper that takes QRNNs."""

from typing import Any

import keras
from keras import ops

from keras_qrnn._types import Shape, Tensor


@keras.saving.register_keras_serializable(package="keras_qrnn")
class Bidirectional(keras.layers.Bidirectional):
    """`keras.layers.Bidirectional` whose call takes a `context`.

    Arguments and results are those of `keras.layers.Bidirectional`. Around a `QRNN` or
    another layer that takes a context there are two differences:

    - A context goes to both directions. Each has a `context_kernel` of its own.
    - Under a mixed policy the states stay float32, given and returned.

    Call arguments:
        sequences: tensor of shape `(batch, time, features)`.
        initial_state: list of states. The first half is for the forward layer, the
            second for the backward layer. Defaults to the layers' own.
        mask: boolean tensor of shape `(batch, time)`. Defaults to the mask that
            `sequences` carries.
        training: Boolean, as in the layers.
        context: tensor of shape `(batch, features)`, as in `QRNN`. Defaults to `None`.

    Raises:
        ValueError: as the two layers; if `initial_state` is no list of even length.

    Example:

    >>> inputs, topic = np.ones((32, 10, 8)), np.ones((32, 3))
    >>> Bidirectional(QRNN(4))(inputs, context=topic).shape
    (32, 8)
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        merge_mode: str | None = "concat",
        weights: list[Any] | None = None,
        backward_layer: keras.layers.Layer | None = None,
        **kwargs: Any,
    ) -> None:
        # Autocast would cast the states, but they stay float32 in mixed precision.
        kwargs.setdefault("autocast", False)
        super().__init__(layer, merge_mode, weights, backward_layer, **kwargs)

    def build(
        self,
        sequences_shape: Shape,
        initial_state_shape: list[Shape] | None = None,
        context_shape: Shape | None = None,
    ) -> None:
        given = {} if context_shape is None else {"context_shape": context_shape}
        for layer in (self.forward_layer, self.backward_layer):
            if not layer.built:
                layer.build(sequences_shape, **given)

    def call(
        self,
        sequences: Tensor,
        initial_state: list[Tensor] | None = None,
        mask: Tensor | None = None,
        training: bool | None = None,
        context: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        """See "Call arguments" in the documentation of the class."""
        given = {"mask": mask, "training": training, "context": context}
        forward, backward = self._arguments(initial_state, given)
        return self._merged(
            self.forward_layer(sequences, **forward),
            self.backward_layer(sequences, **backward),
        )

    def compute_output_spec(
        self,
        sequences: Tensor,
        initial_state: list[Tensor] | None = None,
        mask: Tensor | None = None,
        training: bool | None = None,
        context: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        given = {"mask": mask, "training": training, "context": context}
        forward, backward = self._arguments(initial_state, given)
        return self._merged(
            self.forward_layer.compute_output_spec(sequences, **forward),
            self.backward_layer.compute_output_spec(sequences, **backward),
        )

    def _arguments(
        self, initial_state: list[Tensor] | None, given: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The keyword arguments of the two layers, without those that are None."""
        given = {name: value for name, value in given.items() if value is not None}
        if initial_state is None:
            return given, given
        is_list = isinstance(initial_state, (list, tuple))
        if not is_list or not initial_state or len(initial_state) % 2:
            received = f"{len(initial_state)} states" if is_list else "one tensor"
            raise ValueError(
                "Argument `initial_state` of a Bidirectional must be a list: the "
                "states of the forward layer, then as many of the backward layer. "
                f"Received: {received}"
            )
        half = len(initial_state) // 2
        return (
            given | {"initial_state": initial_state[:half]},
            given | {"initial_state": initial_state[half:]},
        )

    def _merged(self, forward: Tensor, backward: Tensor) -> Tensor | tuple[Tensor, ...]:
        """What a call returns, from what the two layers return."""
        states: tuple[Tensor, ...] = ()
        if self.return_state:
            (forward, *first), (backward, *second) = forward, backward
            states = (*first, *second)
        both = [ops.cast(each, self.compute_dtype) for each in (forward, backward)]
        if self.return_sequences:
            both[1] = ops.flip(both[1], axis=1)
        if self.merge_mode is None:
            return (*both, *states)
        merge = {
            "concat": lambda a, b: ops.concatenate([a, b], axis=-1),
            "sum": ops.add,
            "ave": lambda a, b: (a + b) / 2,
            "mul": ops.multiply,
        }
        merged = merge[self.merge_mode](*both)
        return (merged, *states) if self.return_state else merged

    def compute_mask(
        self, sequences: Tensor, mask: Tensor | list[Tensor | None] | None
    ) -> Tensor | list[Tensor | None] | None:
        masks = self.forward_layer.compute_mask(sequences, mask)
        masks = masks if self.return_state else [masks]
        masks = masks[:1] * (2 if self.merge_mode is None else 1) + masks[1:] * 2
        return masks if len(masks) > 1 else masks[0]
