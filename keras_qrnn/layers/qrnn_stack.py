"""A stack of QRNNs as one layer. It moves masked steps once, not in each QRNN."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops, regularizers
from keras.initializers import Initializer
from keras.regularizers import Regularizer

from keras_qrnn._checks import boolean, for_each_layer, positive_integer, rate
from keras_qrnn._types import Shape, Tensor
from keras_qrnn.layers._masks import compact, in_front, mask_of
from keras_qrnn.layers._states import (
    KeptStates,
    check_batch_size,
    check_time,
    result_specs,
    shapes_of,
)
from keras_qrnn.layers.qrnn import QRNN


@keras.saving.register_keras_serializable(package="keras_qrnn")
class QRNNStack(KeptStates, keras.layers.Layer):
    """A stack of QRNNs as one layer.

    Each layer reads the outputs of the layer before, at all steps. With `dense=True` it
    reads the input of the layer before too: it sees the stack's input and the outputs
    of all layers before it (arXiv 1611.01576, section 2.1, "Densely-Connected
    Layers"). The output of the last layer alone is the output of the stack.

    The stack computes the same as its QRNNs one after another. With a mask it is
    faster: the masked steps are moved once, not in each layer.

    Args:
        units: Positive integer, size of each layer's output; or a sequence with one
            integer for each layer.
        layers: Positive integer, number of layers.
        window: Positive integer, window of each layer in steps; or a sequence with one
            integer for each layer. Defaults to `2`.
        dense: Boolean, whether each layer's input is concatenated to its output before
            the next layer. Defaults to `False`.
        dropout: Float in [0, 1), fraction of the features dropped in training from the
            input of every layer but the first (section 3.1: "dropout between layers").
            As in LSTM and QRNN, all steps of a sequence drop the same features. Each
            layer draws its features anew, with `dense=True` also among the inputs of
            the layers before. Defaults to `0`.
        seed: Random seed of the first layer, layer 0. Layer n has `seed + n`.
        activity_regularizer: Regularizer of the stack's output and, as in Keras's
            recurrent layers, of the states that it returns. Window states hold inputs:
            see `keras_qrnn.QRNN`. Defaults to `None`.
        return_sequences: Boolean, whether to return the last layer's outputs of all
            steps or only its last output. Defaults to `False`.
        return_state: Boolean, whether to return the last states of all layers too.
            Defaults to `False`.
        go_backwards: Boolean, whether to process the input from its end, and return the
            outputs in that order. Defaults to `False`.
        stateful: Boolean, whether the last states of a batch are the first states of
            the next. It needs a static batch size. Defaults to `False`.
        zero_output_for_mask: Boolean, whether a masked step outputs zeros instead of
            repeating the previous output. Defaults to `False`.
        name, dtype: As in `keras.layers.Layer`.
        trainable: As in `keras.layers.Layer`, or a list with a Boolean for each layer.
            Defaults to `True`.
        **each: Other arguments of `keras_qrnn.QRNN`, for each layer: `pooling`,
            `activation`, `recurrent_activation`, `use_bias`, `zoneout`,
            `kernel_dropout`, `padding`, and the initializers, regularizers and
            constraints of the weights. An initializer with a seed gives kernels of the
            same size the same values in all layers.

    Call arguments:
        sequences: tensor of shape `(batch, time, features)`, cast to the layer's
            compute dtype.
        initial_state: the states before the first step: a list of the cell states, one
            for each layer, or a list of all states (see "States"). With the cell states
            alone the window states are zeros. Defaults to zeros, or to the kept states
            when `stateful`.
        mask: boolean tensor of shape `(batch, time)` or `(batch, time, 1)`, of any
            pattern. A step where it is False leaves all states as they were. The
            inputs of such a step, even NaN, reach no output, state or gradient.
            Defaults to the mask that `sequences` carries.
        training: Boolean, whether zoneout and the dropouts act.
        previous_output: tensor of shape `(batch, units of the last layer)`, the output
            before the first step. Masked steps at the start of `sequences` repeat it.
            Defaults to zeros, for `pooling="f"` to the last layer's cell state, and
            when `stateful` to the kept output.
        context: tensor of shape `(batch, features)` for all layers, or a list with one
            for each, of any number of features: see `keras_qrnn.QRNN`. Each layer has
            its own `context_kernel`. Defaults to `None`.

    Output shape:
        With `m` units in the last layer: `(batch, time, m)` with
        `return_sequences=True`, else `(batch, m)`; with `return_state=True` followed by
        the states. The output has the compute dtype.

    States:
        The states of the first layer, then those of the second, and so on, in one flat
        list. Each layer has its cell state, and for a window above 1 its window state,
        as described in `keras_qrnn.QRNN`. They have the dtype of the weights, so under
        a mixed policy they are float32. Except with `padding="same"`, pieces of a
        sequence, cut anywhere, give the outputs of the whole when the states are passed
        on.

        With `stateful=True` the stack keeps the states, and the last output, in
        variables that are not weights.

    Attributes:
        qrnns: The layers of the stack, a list of `keras_qrnn.QRNN` named `qrnn_0`,
            `qrnn_1` and so on. Each may be called alone. In the stack, each gets the
            outputs of the layer before; with `dense=True` the input of the layer before
            and its outputs, concatenated. With `go_backwards=True` the first layer
            alone reverses the steps and its mask; the others get the mask reversed.
        states: The kept states of a built stateful stack, a flat list of variables,
            else None.

    Raises:
        ValueError: as `keras_qrnn.QRNN`; if `units` or `window` has not one integer for
            each layer; if `initial_state` is neither one cell state for each layer nor
            all states; if a list of contexts has not one for each layer.

    Example:

    >>> inputs = np.random.random((32, 10, 8))
    >>> stack = QRNNStack(4, layers=3, window=[3, 2, 1], dense=True, return_state=True)
    >>> outputs, *states = stack(inputs)
    >>> [state.shape for state in states]  # the layers see 8, 12 and 16 features
    [(32, 4), (32, 2, 8), (32, 4), (32, 1, 12), (32, 4)]
    """

    def __init__(
        self,
        units: int | Sequence[int],
        layers: int,
        window: int | Sequence[int] = 2,
        dense: bool = False,
        dropout: float = 0.0,
        seed: int | None = None,
        activity_regularizer: str | Regularizer | None = None,
        return_sequences: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        stateful: bool = False,
        zero_output_for_mask: bool = False,
        name: str | None = None,
        dtype: Any = None,
        trainable: bool | Sequence[bool] = True,
        **each: Any,
    ) -> None:
        # Autocast would cast the states, but they stay float32 in mixed precision.
        super().__init__(
            activity_regularizer=activity_regularizer, name=name, dtype=dtype,
            trainable=trainable is not False, autocast=False,
            input_shape=each.pop("input_shape", None),
        )  # fmt: skip
        layers = positive_integer("layers", layers)
        sizes = for_each_layer("units", units, layers)
        windows = for_each_layer("window", window, layers)
        self.dense = boolean("dense", dense)
        return_sequences = boolean("return_sequences", return_sequences)
        go_backwards = boolean("go_backwards", go_backwards)
        zero_output_for_mask = boolean("zero_output_for_mask", zero_output_for_mask)
        learn = trainable if isinstance(trainable, Sequence) else [trainable] * layers
        if len(learn) != layers:
            raise ValueError(
                f"Argument `trainable` must be a bool, or one for each of the {layers} "
                f"layers. Received: {trainable!r}"
            )
        self._dropout = rate("dropout", dropout)
        self.seed = seed
        self.supports_masking = True
        self.input_spec = keras.layers.InputSpec(ndim=3)
        # Keras takes an attribute `layers` for a list of layers.
        self._count = layers
        for n in range(layers):
            is_last = n == layers - 1
            layer = QRNN(
                sizes[n],
                windows[n],
                **{name: _own(value) for name, value in each.items()},
                dropout=dropout if n else 0.0,
                seed=None if seed is None else seed + n,
                return_sequences=return_sequences or not is_last,
                return_state=return_state,
                go_backwards=go_backwards and n == 0,
                stateful=stateful,
                zero_output_for_mask=zero_output_for_mask and is_last,
                name=f"qrnn_{n}",
                dtype=self.dtype_policy,
                trainable=learn[n],
            )
            layer._stack, layer._keeps_output = self.name, is_last
            # Each layer is an attribute: NNX would not find variables in a list.
            setattr(self, layer.name, layer)

    def build(
        self,
        sequences_shape: Shape,
        initial_state_shape: list[Shape] | None = None,
        context_shape: Shape | list[Shape] | None = None,
    ) -> None:
        """Makes the weights and, when stateful, the kept states.

        If the stack is built already, this resets the kept states, as in
        `keras.layers.RNN`.

        Args:
            sequences_shape: `(batch, time, features)`.
            initial_state_shape: shapes of the states. It is not used.
            context_shape: shape of the context, or a list of the shapes of the
                contexts. None for a stack that gets none.

        Raises:
            ValueError: if `features` is None, or if `batch` is None and the stack is
                stateful; if `context_shape` is no such shape.
        """
        batch, time, features = sequences_shape
        if context_shape is not None and not isinstance(context_shape[0], Sequence):
            context_shape = [context_shape] * self._count
        contexts = self._contexts(context_shape)
        sizes = self._features(features)
        for layer, size, shape in zip(self.qrnns, sizes, contexts, strict=True):
            layer.build((batch, time, size), context_shape=shape)
        self.input_spec = self.qrnns[0].input_spec

    @property
    def qrnns(self) -> list[QRNN]:
        """The layers of the stack, in their order."""
        return [getattr(self, f"qrnn_{n}") for n in range(self._count)]

    def __dir__(self) -> list[str]:
        # Keras looks for weights in all these attributes. Each layer is one. Where its
        # weights do not fit, Keras would look in the list too, and report that the file
        # has none there.
        return [name for name in super().__dir__() if name != "qrnns"]

    @property
    def dtype_policy(self) -> keras.dtype_policies.DTypePolicy:
        """The policy of the stack and its layers. It may be set, as in one layer.

        Weights that are made keep their dtype.
        """
        return keras.layers.Layer.dtype_policy.fget(self)

    @dtype_policy.setter
    def dtype_policy(self, value: Any) -> None:
        keras.layers.Layer.dtype_policy.fset(self, value)
        for layer in self.qrnns:
            layer.dtype_policy = value

    @property
    def return_sequences(self) -> bool:
        """Whether the outputs of all steps are returned. It may be set."""
        return self.qrnns[-1].return_sequences

    @return_sequences.setter
    def return_sequences(self, value: bool) -> None:
        self.qrnns[-1].return_sequences = value

    @property
    def return_state(self) -> bool:
        """Whether the states are returned. It may be set."""
        return self.qrnns[0].return_state

    @return_state.setter
    def return_state(self, value: bool) -> None:
        for layer in self.qrnns:
            layer.return_state = value

    @property
    def go_backwards(self) -> bool:
        """Whether the steps are reversed. It may be set."""
        return self.qrnns[0].go_backwards

    @go_backwards.setter
    def go_backwards(self, value: bool) -> None:
        self.qrnns[0].go_backwards = value

    @property
    def stateful(self) -> bool:
        """Whether the states are kept. It may be set before the stack is built."""
        return self.qrnns[0].stateful

    @stateful.setter
    def stateful(self, value: bool) -> None:
        padding = self.qrnns[0].padding
        if value and (self.built or padding == "same"):
            raise ValueError(
                "Attribute `stateful` of a QRNNStack may be set to True before the "
                'stack is built, and with `padding="causal"` only. Received: '
                f"padding={padding!r}, built={self.built!r}"
            )
        for layer in self.qrnns:
            layer.stateful = value

    @property
    def dropout(self) -> float:
        """The dropout rate between the layers. It may be set where it was not 0."""
        return self._dropout

    @dropout.setter
    def dropout(self, value: float) -> None:
        value = rate("dropout", value)
        if value and not self._dropout:
            raise ValueError(
                "Attribute `dropout` of a QRNNStack that was made without dropout "
                "cannot be set: its layers have no random numbers. "
                f"Received: dropout={value!r}"
            )
        self._dropout = value
        for layer in self.qrnns[1:]:
            layer.dropout = self._dropout

    @property
    def zero_output_for_mask(self) -> bool:
        """Whether a masked step outputs zeros. It may be set: `Bidirectional` does."""
        return self.qrnns[-1].zero_output_for_mask

    @zero_output_for_mask.setter
    def zero_output_for_mask(self, value: bool) -> None:
        self.qrnns[-1].zero_output_for_mask = value

    @property
    def states(self) -> list[keras.Variable] | None:
        """The kept states of a built stateful stack, layer by layer, else None."""
        return [state for layer in self.qrnns for state in layer.states or ()] or None

    @property
    def kept(self) -> list[keras.Variable]:
        """The kept states and the last layer's last output."""
        return [variable for layer in self.qrnns for variable in layer.kept]

    def call(
        self,
        sequences: Tensor,
        initial_state: list[Tensor] | None = None,
        mask: Tensor | None = None,
        training: bool = False,
        previous_output: Tensor | None = None,
        context: Tensor | list[Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        """See "Call arguments" and "Output shape" in the documentation of the class."""
        layers, given = self.qrnns, self._given(initial_state)
        contexts = self._contexts(context)
        sequences, mask = layers[0]._in_scan_order(sequences, mask)
        valid = None
        if mask is not None:
            sequences, valid = compact(sequences, mask)
        states = []
        last_layer = layers[-1]
        for layer, first, vector in zip(layers, given, contexts, strict=True):
            vector = layer._checked_context(sequences, vector)
            before, repeated_output = layer._first_states(
                sequences, first, previous_output if layer is last_layer else None, mask
            )
            outputs, after = layer._steps(sequences, valid, before, training, vector)
            states.append(after)
            if layer is not last_layer:
                sequences = self._next(sequences, outputs, valid)
        outputs, last_output = last_layer._at_their_steps(
            outputs, mask, valid, repeated_output
        )
        if self.stateful:
            for layer, after in zip(layers, states, strict=True):
                layer._keep(after, last_output)
        if not self.return_state:
            return outputs
        pairs = zip(layers, states, strict=True)
        return (outputs, *(s for layer, after in pairs for s in layer._returned(after)))

    def _next(self, sequences: Tensor, outputs: Tensor, valid: Tensor | None) -> Tensor:
        """The input of the next layer, from the input and the outputs of this one."""
        if valid is not None and self.qrnns[0].padding == "same":
            is_valid = in_front(ops.shape(outputs)[1], valid)
            outputs = ops.where(is_valid, outputs, ops.zeros((), outputs.dtype))
        if self.dense:
            return ops.concatenate([sequences, outputs], axis=-1)
        return outputs

    def _features(self, features: int | None) -> list[int | None]:
        """The number of features that each layer reads, if the first reads these."""
        sizes = [features]
        for layer in self.qrnns[:-1]:
            before = sizes[-1] if self.dense else 0
            sizes.append(None if before is None else before + layer.units)
        return sizes

    def _given(self, initial_state: list[Tensor] | None) -> list[list[Tensor] | None]:
        """The given states of each layer, whose shapes that layer checks.

        Raises:
            ValueError: if there is neither one for each layer nor all states.
        """
        if initial_state is None:
            return [None] * self._count
        is_list = isinstance(initial_state, (list, tuple))
        states = list(initial_state) if is_list else [initial_state]
        shapes = [layer._state_shapes(None, None) for layer in self.qrnns]
        if len(states) == self._count:
            return [[state] for state in states]
        if len(states) == sum(map(len, shapes)):
            rest = iter(states)
            return [[next(rest) for _ in each] for each in shapes]
        if self._count == 1:  # then the message of a QRNN fits
            return [states]
        names = "; ".join(
            f"{layer.name}: {', '.join(each)}"
            for layer, each in zip(self.qrnns, shapes, strict=True)
        )
        raise ValueError(
            "Argument `initial_state` of a QRNNStack must be a list of the "
            f"{self._count} cell states, one for each layer, or of all states, layer "
            f"by layer ({names}). Received: states of the shapes {shapes_of(states)}"
        )

    def _contexts(self, context: Any) -> list[Any]:
        """The context of each layer.

        Raises:
            ValueError: if a list has not one for each layer.
        """
        if not isinstance(context, (list, tuple)):
            return [context] * self._count
        if len(context) != self._count:
            raise ValueError(
                "Argument `context` of a QRNNStack must be a tensor, or a list with "
                f"one for each of the {self._count} layers. Received: a list of "
                f"{len(context)}"
            )
        return list(context)

    def reset_state(self) -> None:
        """Sets the kept states of a stateful stack to zeros."""
        for layer in self.qrnns:
            layer.reset_state()

    def reset_states(self) -> None:
        """Alias of `reset_state`, as in `keras.layers.LSTM`."""
        self.reset_state()

    def compute_output_shape(
        self,
        sequences_shape: Shape,
        initial_state_shape: list[Shape] | None = None,
        context_shape: Shape | list[Shape] | None = None,
    ) -> Shape | tuple[Shape, ...]:
        batch, time, features = sequences_shape
        output: Shape = (batch, self.qrnns[-1].units)
        if self.return_sequences:
            output = (batch, time, output[-1])
        if not self.return_state:
            return output
        pairs = zip(self.qrnns, self._features(features), strict=True)
        states = (layer._state_shapes(batch, size).values() for layer, size in pairs)
        return (output, *(shape for each in states for shape in each))

    def compute_output_spec(
        self,
        sequences: Tensor,
        initial_state: list[Tensor] | None = None,
        mask: Tensor | None = None,
        training: bool = False,
        previous_output: Tensor | None = None,
        context: Tensor | list[Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        check_time(sequences)
        mask_of(sequences, mask)
        batch, _, features = sequences.shape
        if self.stateful:
            check_batch_size(sequences, self.kept[0].shape[0])
        each = zip(
            self.qrnns,
            self._features(features),
            self._given(initial_state),
            self._contexts(context),
            strict=True,
        )
        for layer, size, states, vector in each:
            output = previous_output if layer is self.qrnns[-1] else None
            layer._checked_states(batch, size, states, output)
            layer._checked_context(sequences, vector)
        return result_specs(self, self.compute_output_shape(sequences.shape))

    def compute_mask(
        self, sequences: Tensor, mask: Tensor | list[Tensor | None] | None
    ) -> Tensor | list[Tensor | None] | None:
        mask = keras.tree.flatten(mask)[0]
        output_mask = mask if self.return_sequences else None
        if not self.return_state:
            return output_mask
        count = sum(len(layer._state_shapes(None, None)) for layer in self.qrnns)
        return [output_mask] + [None] * count

    def get_config(self) -> dict[str, Any]:
        config = {
            "units": [layer.units for layer in self.qrnns],
            "layers": self._count,
            "window": [layer.window for layer in self.qrnns],
            "dense": self.dense,
            "dropout": self.dropout,
            "seed": self.seed,
            "activity_regularizer": regularizers.serialize(self.activity_regularizer),
            "return_sequences": self.return_sequences,
            "return_state": self.return_state,
            "go_backwards": self.go_backwards,
            "stateful": self.stateful,
            "zero_output_for_mask": self.zero_output_for_mask,
        }
        learn = [layer.trainable for layer in self.qrnns]
        if self.trainable and not all(learn):
            config["trainable"] = learn
        # What all layers share is in the first layer's configuration.
        return {**self.qrnns[0].get_config(), **super().get_config(), **config}


def _own(value: Any) -> Any:
    """A copy of an initializer or a layer, so that each layer gets other weights.

    An initializer object draws the same values at each call. A copy draws others, if
    the initializer has no seed. A layer, such as a PReLU as activation, has weights.
    """
    if isinstance(value, keras.layers.Layer):
        return type(value).from_config(value.get_config())
    return value.clone() if isinstance(value, Initializer) else value
