from collections.abc import Callable, Mapping, MutableMapping

import keras
from keras import activations, constraints, initializers, ops, regularizers
from keras.constraints import Constraint
from keras.initializers import Initializer
from keras.regularizers import Regularizer

from keras_qrnn._checks import positive_integer, rate
from keras_qrnn._types import Shape, Tensor
from keras_qrnn.ops.backend import backend
from keras_qrnn.ops.equations import GATES

_NO_MEANING = {
    "recurrent_initializer": "a QRNN has no recurrent kernel: use `kernel_initializer`",
    "recurrent_regularizer": "a QRNN has no recurrent kernel: use `kernel_regularizer`",
    "recurrent_constraint": "a QRNN has no recurrent kernel: use `kernel_constraint`",
    "recurrent_dropout": "a QRNN has no recurrent kernel: use `zoneout`",
    "unit_forget_bias": "the gates share one bias: use `bias_initializer`",
    "unroll": "the time loop is inside the op and is never unrolled: leave it out",
    "use_cudnn": "the layer picks its own algorithm: leave it out",
    "implementation": "the layer picks its own algorithm: leave it out",
    "time_major": "inputs have shape (batch, time, features): transpose them",
    "reset_after": "that belongs to GRU: leave it out",
}
# But their values that change nothing in an LSTM change nothing here.
_HARMLESS = {
    "recurrent_regularizer": (None,),
    "recurrent_constraint": (None,),
    "recurrent_dropout": (0,),
    "unit_forget_bias": (False,),
    "unroll": (False,),
    "use_cudnn": ("auto", True, False),
    "implementation": (0, 1, 2),
    "time_major": (False,),
}


@keras.saving.register_keras_serializable(package="keras_qrnn")
class QRNN(keras.layers.Layer):
    """Quasi-Recurrent Neural Network layer (Bradbury et al., arXiv 1611.01576).

    Takes the place of `keras.layers.LSTM`. A causal convolution computes the
    candidates and gates of all time steps at once (section 2.1, equation 1):

        z = tanh(W_z * x)    f = sigmoid(W_f * x)    o = sigmoid(W_o * x)

    and an elementwise pooling (equations 3 to 5), the only sequential part,
    mixes them over time. For `pooling="fo"`:

        c[t] = f[t] * c[t - 1] + (1 - f[t]) * z[t]      h[t] = o[t] * c[t]

    Args:
        units: Positive integer, dimensionality of the output space.
        window: Positive integer, how many time steps, the present one included,
            the convolution sees. Defaults to `2`.
        pooling: `"f"`, `"fo"` or `"ifo"`. Defaults to `"fo"`.
        activation: Activation of the candidates z. Defaults to `"tanh"`.
        recurrent_activation: Activation of the gates f, o and i. Defaults to
            `"sigmoid"`. The two defaults run in one fused op.
        use_bias: Boolean, whether the convolution has a bias. Defaults to `True`.
        kernel_initializer: Initializer of the `(window, features, gates * units)`
            kernel, gates in the order z, f, o, i. Defaults to
            `"glorot_uniform"`.
        bias_initializer: Initializer of the bias. Defaults to `"zeros"`.
        kernel_regularizer: Regularizer of the kernel. Defaults to `None`.
        bias_regularizer: Regularizer of the bias. Defaults to `None`.
        activity_regularizer: Regularizer of the layer's output. Defaults to
            `None`.
        kernel_constraint: Constraint of the kernel. Defaults to `None`.
        bias_constraint: Constraint of the bias. Defaults to `None`.
        zoneout: Float in [0, 1), the probability with which a unit keeps its
            whole previous state at a step in training (section 2.1,
            "Regularization"); at inference the expectation is used. Defaults
            to `0`.
        dropout: Float in [0, 1), fraction of the input features dropped in
            training, the same at all steps of a sequence, as in LSTM. Defaults
            to `0`.
        seed: Random seed for zoneout, dropout and kernel_dropout.
        return_sequences: Boolean, whether to return the output of every step
            or of the last. Defaults to `False`.
        return_state: Boolean, whether to return the last state in addition.
            Defaults to `False`.
        go_backwards: Boolean, whether to process the input from its end, and
            return the outputs in that order. Defaults to `False`.
        stateful: Boolean, whether the last state of a batch is the first of the
            next. Needs a static batch size. Defaults to `False`.
        zero_output_for_mask: Boolean, whether a masked step outputs zeros
            instead of repeating the previous output. Defaults to `False`.
        kernel_dropout: Float in [0, 1), fraction of the kernel's elements that are
            zero in training (DropConnect, the weight drop of arXiv 1708.02182,
            section 2). Each call draws one mask for all sequences and steps, and
            scales the other elements by `1 / (1 - kernel_dropout)`. Defaults to
            `0`.

    Call arguments:
        sequences: tensor of shape `(batch, time, features)`, cast to the layer's
            compute dtype.
        initial_state: The state before the first step: a list of the cell state
            `(batch, units)` and, where `window > 1`, the last `window - 1`
            inputs, `(batch, window - 1, features)`. Either the cell state alone
            (the window then starts with zeros) or the whole list, as
            `return_state=True` gives it. It may have one more entry, the
            previous output `(batch, units)`, which masked steps at the start of
            `sequences` repeat; zeros by default. Defaults to zeros, or to the
            kept state when `stateful`.
        mask: boolean tensor of shape `(batch, time)`; a step where it is False
            leaves the state as it was. Any pattern is allowed.
        training: Boolean, whether zoneout, dropout and kernel_dropout act.

    Output shape:
        `(batch, time, units)` with `return_sequences=True`, else
        `(batch, units)`; with `return_state=True` followed by the states.

    Raises:
        ValueError: for an argument out of its range, an argument of LSTM that
            has no meaning here, or inputs, masks or states of a wrong shape.

    Example:

    >>> inputs = np.random.random((32, 10, 8))
    >>> QRNN(4)(inputs).shape
    (32, 4)
    >>> outputs, cell, window = QRNN(
    ...     4, return_sequences=True, return_state=True
    ... )(inputs)
    >>> outputs.shape, cell.shape, window.shape
    ((32, 10, 4), (32, 4), (32, 1, 8))
    """

    def __init__(
        self,
        units: int,
        window: int = 2,
        pooling: str = "fo",
        activation: str | Callable = "tanh",
        recurrent_activation: str | Callable = "sigmoid",
        use_bias: bool = True,
        kernel_initializer: str | Initializer = "glorot_uniform",
        bias_initializer: str | Initializer = "zeros",
        kernel_regularizer: str | Regularizer | None = None,
        bias_regularizer: str | Regularizer | None = None,
        activity_regularizer: str | Regularizer | None = None,
        kernel_constraint: str | Constraint | None = None,
        bias_constraint: str | Constraint | None = None,
        zoneout: float = 0.0,
        dropout: float = 0.0,
        seed: int | None = None,
        return_sequences: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        stateful: bool = False,
        zero_output_for_mask: bool = False,
        kernel_dropout: float = 0.0,
        **kwargs,
    ) -> None:
        for name in [name for name in kwargs if name in _NO_MEANING]:
            if kwargs[name] in _HARMLESS.get(name, ()):
                del kwargs[name]
            else:
                raise ValueError(
                    f"QRNN does not take LSTM's argument `{name}`; "
                    f"{_NO_MEANING[name]}. Received: {name}={kwargs[name]!r}"
                )
        super().__init__(activity_regularizer=activity_regularizer, **kwargs)
        self.units = positive_integer("units", units)
        self.window = positive_integer("window", window)
        if pooling not in GATES:
            raise ValueError(
                f"Argument `pooling` must be one of {', '.join(map(repr, GATES))}. "
                f"Received: pooling={pooling!r}"
            )
        self.pooling = pooling
        self.activation = activations.get(activation)
        self.recurrent_activation = activations.get(recurrent_activation)
        self.use_bias = use_bias
        self.kernel_initializer = initializers.get(kernel_initializer)
        self.bias_initializer = initializers.get(bias_initializer)
        self.kernel_regularizer = regularizers.get(kernel_regularizer)
        self.bias_regularizer = regularizers.get(bias_regularizer)
        self.kernel_constraint = constraints.get(kernel_constraint)
        self.bias_constraint = constraints.get(bias_constraint)
        self.zoneout = rate("zoneout", zoneout)
        self.dropout = rate("dropout", dropout)
        self.seed = seed
        self.kernel_dropout = rate("kernel_dropout", kernel_dropout)
        if zoneout or dropout or kernel_dropout:
            self.seed_generator = keras.random.SeedGenerator(seed)
        self.return_sequences = return_sequences
        self.return_state = return_state
        self.go_backwards = go_backwards
        self.stateful = stateful
        self.zero_output_for_mask = zero_output_for_mask
        self.supports_masking = True
        self.input_spec = keras.layers.InputSpec(ndim=3)
        self.states = None

    def build(
        self, sequences_shape: Shape, initial_state_shape: list[Shape] | None = None
    ) -> None:
        batch, _, features = sequences_shape
        if features is None:
            raise ValueError(
                "The last dimension of the inputs to QRNN must be known. "
                f"Received: sequences.shape={tuple(sequences_shape)}"
            )
        channels = len(GATES[self.pooling]) * self.units
        self.kernel = self.add_weight(
            shape=(self.window, features, channels),
            name="kernel",
            initializer=self.kernel_initializer,
            regularizer=self.kernel_regularizer,
            constraint=self.kernel_constraint,
        )
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(
                shape=(channels,),
                name="bias",
                initializer=self.bias_initializer,
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
            )
        if self.stateful:
            if batch is None:
                raise ValueError(
                    "A stateful QRNN needs a static batch size: give the model an "
                    "`Input(batch_shape=...)` or call it on data. "
                    f"Received: sequences.shape={tuple(sequences_shape)}"
                )
            self.states = [
                self.add_weight(
                    shape=shape,
                    name=name,
                    initializer="zeros",
                    trainable=False,
                    autocast=False,
                )
                for name, shape in self._full_state(batch, features).items()
            ]
        self.input_spec = keras.layers.InputSpec(ndim=3, axes={-1: features})

    def _full_state(self, batch: int | None, features: int) -> dict[str, tuple]:
        """Shapes of the cell state, the window (if any) and the last output.

        The last output is only repeated by masked steps, so it is not part of
        what `return_state` gives.
        """
        shapes = {"cell_state": (batch, self.units)}
        if self.window > 1:
            shapes["window_state"] = (batch, self.window - 1, features)
        return shapes | {"last_output": (batch, self.units)}

    def call(
        self,
        sequences: Tensor,
        initial_state: Tensor | list[Tensor] | None = None,
        mask: Tensor | None = None,
        training: bool = False,
    ) -> Tensor | tuple[Tensor, ...]:
        """See "Call arguments" and "Output shape" in the documentation of the class."""
        _check_time(sequences)
        # Keras itself casts floats only, and not in a layer's `stateless_call`.
        sequences = ops.cast(sequences, self.compute_dtype)
        if self.go_backwards:
            sequences = ops.flip(sequences, axis=1)
        if mask is not None:
            mask = _checked_mask(mask, sequences)
            if self.go_backwards:
                mask = ops.flip(mask, axis=1)
        cell, window, previous_output = self._initial_state(sequences, initial_state)

        valid = None
        if mask is not None:
            # Masked steps go behind the others: what they leave as it was, the
            # window included, then needs no care, whatever their pattern.
            sequences, valid = _compact(sequences, mask)
        inputs = sequences
        if window is not None:
            inputs = ops.concatenate([window, sequences], axis=1)
        outputs, cell = self._convolve_and_pool(
            self._drop(inputs, training),
            cell,
            self._update_scale(sequences, valid, training),
            training,
        )

        if self.window > 1:
            window = _last_inputs(inputs, valid, self.window - 1)
        if mask is not None:
            outputs = _expand(outputs, mask, previous_output)
        last_output = outputs[:, -1]
        if mask is not None and self.zero_output_for_mask:
            outputs = outputs * ops.cast(mask[:, :, None], outputs.dtype)
        if self.stateful:
            new_states = [cell, window, last_output]
            new_states = [state for state in new_states if state is not None]
            for variable, state in zip(self.states, new_states, strict=True):
                variable.assign(ops.cast(state, variable.dtype))

        outputs = outputs if self.return_sequences else outputs[:, -1]
        if not self.return_state:
            return outputs
        cell = ops.cast(cell, self.compute_dtype)
        return (outputs, cell) if window is None else (outputs, cell, window)

    def compute_gates(
        self, sequences: Tensor, initial_state: Tensor | list[Tensor] | None = None
    ) -> list[Tensor]:
        """The activations of the gates, for looking into a trained layer.

        Args:
            sequences: float tensor of shape `(batch, time, features)`.
            initial_state: As in a call of the layer. Defaults to zeros, or to
                the kept state when `stateful`; the state is not changed.

        Returns:
            A list of tensors of shape `(batch, time, units)`: z, f and, as the
            pooling has them, o and i. Zoneout and dropout are off. With
            `go_backwards` time runs in the order of the outputs.
        """
        sequences = ops.convert_to_tensor(sequences, dtype=self.compute_dtype)
        if not self.built:
            self.build(sequences.shape)
        _check_time(sequences)
        if self.go_backwards:
            sequences = ops.flip(sequences, axis=1)
        _, window, _ = self._initial_state(sequences, initial_state)
        if window is not None:
            sequences = ops.concatenate([window, sequences], axis=1)
        return self._activate(
            backend.causal_conv(sequences, *self._weights(sequences.dtype))
        )

    def _drop(self, inputs: Tensor, training: bool) -> Tensor:
        if not (training and self.dropout):
            return inputs
        noise_shape = (ops.shape(inputs)[0], 1, inputs.shape[-1])
        return keras.random.dropout(
            inputs, self.dropout, noise_shape=noise_shape, seed=self.seed_generator
        )

    def _weights(
        self, dtype: str, training: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        kernel = ops.cast(ops.convert_to_tensor(self.kernel), dtype)
        if training and self.kernel_dropout:
            # The mask is boolean: what the gradient keeps of it is a byte an element.
            noise = keras.random.uniform(
                self.kernel.shape, dtype="float32", seed=self.seed_generator
            )
            kernel = ops.where(
                noise >= self.kernel_dropout,
                kernel * (1.0 / (1.0 - self.kernel_dropout)),
                ops.zeros((), dtype),
            )
        if self.bias is None:
            return kernel, None
        return kernel, ops.cast(ops.convert_to_tensor(self.bias), dtype)

    def _activate(self, gates: Tensor) -> list[Tensor]:
        z, *others = ops.split(gates, len(GATES[self.pooling]), axis=-1)
        return [self.activation(z), *map(self.recurrent_activation, others)]

    def _convolve_and_pool(
        self,
        inputs: Tensor,
        cell: Tensor,
        update_scale: Tensor | float | None,
        training: bool,
    ) -> tuple[Tensor, Tensor]:
        kernel, bias = self._weights(inputs.dtype, training)
        fused = (
            self.activation is activations.tanh
            and self.recurrent_activation is activations.sigmoid
        )
        if fused:
            return backend.conv_pool(
                inputs, kernel, bias, cell, update_scale, self.pooling
            )
        gates = self._activate(backend.causal_conv(inputs, kernel, bias))
        gates = ops.concatenate(gates, axis=-1)
        return backend.pool(gates, cell, update_scale, self.pooling, activate=False)

    def _update_scale(
        self, sequences: Tensor, valid: Tensor | None, training: bool
    ) -> Tensor | float | None:
        """How much of its update each state takes: what zoneout and masks do."""
        batch, time = ops.shape(sequences)[:2]
        update_scale = None
        if self.zoneout and training:
            noise = keras.random.uniform(
                (batch, time, self.units), dtype="float32", seed=self.seed_generator
            )
            update_scale = noise >= self.zoneout
        elif self.zoneout:
            update_scale = 1.0 - self.zoneout
        if valid is None:
            return update_scale
        is_valid = ops.arange(time)[None, :, None] < valid[:, None, None]
        if update_scale is None:
            return is_valid
        if isinstance(update_scale, float):
            accumulator = "float64" if self.compute_dtype == "float64" else "float32"
            return update_scale * ops.cast(is_valid, accumulator)
        return ops.logical_and(update_scale, is_valid)

    def _given_state(
        self, sequences: Tensor, initial_state: Tensor | list[Tensor] | None
    ) -> list[Tensor]:
        """`initial_state` as a list of checked shapes, empty where there is none."""
        batch, _, features = sequences.shape
        if self.stateful and batch is not None and batch != self.states[0].shape[0]:
            raise ValueError(
                "The batch size of a stateful QRNN must not change: leave out the "
                "samples that do not fill a batch. Expected: "
                f"{self.states[0].shape[0]}. Received: sequences.shape="
                f"{tuple(sequences.shape)}"
            )
        if initial_state is None:
            return []
        given = initial_state if isinstance(initial_state, (list, tuple)) else None
        given = [initial_state] if given is None else list(given)
        shapes = self._full_state(batch, features)
        if len(given) not in {1, len(shapes) - 1, len(shapes)}:
            raise ValueError(
                f"Argument `initial_state` of a QRNN with window={self.window} must "
                f"be the cell state or a list of {', '.join(list(shapes)[:-1])} and, "
                f"optionally, last_output. Received: {len(given)} tensors"
            )
        for n, (name, shape) in enumerate(list(shapes.items())[: len(given)]):
            if given[n] is not None and not hasattr(given[n], "shape"):
                given[n] = ops.convert_to_tensor(given[n])
            received = None if given[n] is None else tuple(given[n].shape)
            if received is None or not _fits(received, shape):
                raise ValueError(
                    f"Argument `initial_state`: expected {name} of shape {shape}. "
                    f"Received: {'None' if received is None else f'shape {received}'}"
                )
        return given

    def _initial_state(
        self, sequences: Tensor, initial_state: Tensor | list[Tensor] | None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """The cell state, window (None where it is 1) and previous output."""
        given = self._given_state(sequences, initial_state)
        if not given and self.stateful:
            # Copies: the variables change before a gradient is taken.
            given = [ops.copy(state) for state in self.states]
        shapes = list(self._full_state(None, sequences.shape[-1]).values())
        states = [ops.convert_to_tensor(state) for state in given]
        for shape in shapes[len(given) :]:
            shape = (ops.shape(sequences)[0], *shape[1:])
            states.append(ops.zeros(shape, self.compute_dtype))
        if self.pooling == "f" and len(given) < len(shapes):
            states[-1] = states[0]  # under f-pooling the state is the output
        cell, *window, previous_output = states
        window = ops.cast(window[0], sequences.dtype) if window else None
        return cell, window, ops.cast(previous_output, sequences.dtype)

    def reset_state(self) -> None:
        """Sets the kept state of a stateful layer to zeros."""
        for variable in self.states or []:
            variable.assign(ops.zeros(variable.shape, variable.dtype))

    def reset_states(self) -> None:
        """Alias of `reset_state`, as in `keras.layers.LSTM`."""
        self.reset_state()

    def compute_output_shape(
        self, sequences_shape: Shape, initial_state_shape: list[Shape] | None = None
    ) -> Shape | tuple[Shape, ...]:
        batch, time, features = sequences_shape
        output = (batch, self.units)
        if self.return_sequences:
            output = (batch, time, self.units)
        if not self.return_state:
            return output
        return (output, *list(self._full_state(batch, features).values())[:-1])

    def compute_output_spec(
        self,
        sequences: Tensor,
        initial_state: Tensor | list[Tensor] | None = None,
        **kwargs,
    ) -> Tensor | tuple[Tensor, ...]:
        _check_time(sequences)
        if kwargs.get("mask") is not None:
            _checked_mask(kwargs["mask"], sequences)
        self._given_state(sequences, initial_state)
        shapes = self.compute_output_shape(sequences.shape)
        if not self.return_state:
            return keras.KerasTensor(shapes, self.compute_dtype)
        return tuple(keras.KerasTensor(shape, self.compute_dtype) for shape in shapes)

    def compute_mask(
        self, sequences: Tensor, mask: Tensor | list[Tensor | None] | None
    ) -> Tensor | list[Tensor | None] | None:
        mask = keras.tree.flatten(mask)[0]
        output_mask = mask if self.return_sequences else None
        if not self.return_state:
            return output_mask
        return [output_mask] + [None] * (1 if self.window == 1 else 2)

    def save_own_variables(self, store: MutableMapping) -> None:
        # The kept state depends on the batch size and is not part of the model.
        store["kernel"] = self.kernel
        if self.bias is not None:
            store["bias"] = self.bias

    def load_own_variables(self, store: Mapping) -> None:
        self.kernel.assign(store["kernel"])
        if self.bias is not None:
            self.bias.assign(store["bias"])

    def get_config(self) -> dict:
        config = {
            "units": self.units,
            "window": self.window,
            "pooling": self.pooling,
            "activation": activations.serialize(self.activation),
            "recurrent_activation": activations.serialize(self.recurrent_activation),
            "use_bias": self.use_bias,
            "kernel_initializer": initializers.serialize(self.kernel_initializer),
            "bias_initializer": initializers.serialize(self.bias_initializer),
            "kernel_regularizer": regularizers.serialize(self.kernel_regularizer),
            "bias_regularizer": regularizers.serialize(self.bias_regularizer),
            "activity_regularizer": regularizers.serialize(self.activity_regularizer),
            "kernel_constraint": constraints.serialize(self.kernel_constraint),
            "bias_constraint": constraints.serialize(self.bias_constraint),
            "zoneout": self.zoneout,
            "dropout": self.dropout,
            "seed": self.seed,
            "return_sequences": self.return_sequences,
            "return_state": self.return_state,
            "go_backwards": self.go_backwards,
            "stateful": self.stateful,
            "zero_output_for_mask": self.zero_output_for_mask,
            "kernel_dropout": self.kernel_dropout,
        }
        return {**super().get_config(), **config}


def _fits(shape: tuple, expected: tuple) -> bool:
    """Whether a shape is the expected one; None fits any size."""
    return len(shape) == len(expected) and all(
        a is None or b is None or a == b for a, b in zip(shape, expected, strict=True)
    )


def _check_time(sequences: Tensor) -> None:
    if sequences.shape[1] == 0:
        raise ValueError(
            "The inputs to QRNN must have at least one time step. "
            f"Received: sequences.shape={tuple(sequences.shape)}"
        )


def _checked_mask(mask: Tensor, sequences: Tensor) -> Tensor:
    if not isinstance(mask, keras.KerasTensor):
        mask = ops.convert_to_tensor(mask)
    if not _fits(mask.shape, sequences.shape[:2]):
        raise ValueError(
            "Argument `mask` must have shape (batch, time) = "
            f"{tuple(sequences.shape[:2])}. Received: mask.shape={tuple(mask.shape)}"
        )
    return mask if isinstance(mask, keras.KerasTensor) else ops.cast(mask, "bool")


def _compact(sequences: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The valid steps of each sequence in front, and their number `(batch,)`."""
    time = ops.shape(sequences)[1]
    is_masked = ops.cast(ops.logical_not(mask), "int32")
    # Each key is unique, so that no backend's sort needs to be a stable one.
    order = ops.argsort(ops.arange(time, dtype="int32") + time * is_masked, axis=1)
    sequences = ops.take_along_axis(sequences, order[:, :, None], axis=1)
    return sequences, ops.sum(ops.cast(mask, "int32"), axis=1)


def _expand(outputs: Tensor, mask: Tensor, previous_output: Tensor) -> Tensor:
    """Outputs of the valid steps back in place; masked steps repeat the previous."""
    outputs = ops.concatenate([previous_output[:, None], outputs], axis=1)
    position = ops.cumsum(ops.cast(mask, "int32"), axis=1)
    return ops.take_along_axis(outputs, position[:, :, None], axis=1)


def _last_inputs(inputs: Tensor, valid: Tensor | None, count: int) -> Tensor:
    """The last `count` valid steps of inputs that begin with the old window."""
    if valid is None:
        return inputs[:, ops.shape(inputs)[1] - count :]
    position = valid[:, None] + ops.arange(count, dtype="int32")[None]
    return ops.take_along_axis(inputs, position[:, :, None], axis=1)
