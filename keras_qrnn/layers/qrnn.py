"""The QRNN layer of arXiv 1611.01576."""

from collections.abc import Callable, Mapping, MutableMapping
from functools import partial
from typing import Any

import keras
from keras import activations, constraints, initializers, ops, regularizers
from keras.constraints import Constraint
from keras.initializers import Initializer
from keras.regularizers import Regularizer

from keras_qrnn._checks import boolean, one_of, positive_integer, rate
from keras_qrnn._types import Shape, Tensor
from keras_qrnn.initializers import ChronoBias
from keras_qrnn.layers import _window_owner
from keras_qrnn.layers._masks import (
    apart,
    compact,
    expand,
    fits,
    in_front,
    joined,
    last_steps,
    last_valid,
    mask_of,
)
from keras_qrnn.layers._states import (
    KeptStates,
    as_value,
    check_batch_size,
    check_time,
    checked_states,
    on_device,
    result_specs,
    rows,
    shapes_of,
    with_rows_of,
    zeros,
)
from keras_qrnn.ops.backend import backend
from keras_qrnn.ops.equations import GATES
from keras_qrnn.ops.scan import checked_at_run_time

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
# The values of these arguments that change nothing in an LSTM are accepted.
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


# Defaults of LSTM and GRU. The config of every LSTM and GRU names them.
_DEFAULTS_OF_OTHERS: dict[str, Callable[[Any], bool]] = {
    "unit_forget_bias": lambda value: value is True,
    "reset_after": lambda value: value is True,
    "recurrent_initializer": lambda value: _is_orthogonal(initializers.get(value)),
}


def _without_harmless(arguments: dict[str, Any]) -> dict[str, Any]:
    """`arguments` without those of LSTM that change nothing. Others raise an error."""
    for name in arguments:
        if name in _NO_MEANING and arguments[name] not in _HARMLESS.get(name, ()):
            raise ValueError(
                f"QRNN does not take LSTM's argument `{name}`; "
                f"{_NO_MEANING[name]}. Received: {name}={arguments[name]!r}"
            )
    return {n: value for n, value in arguments.items() if n not in _NO_MEANING}


def _is_orthogonal(initializer: Initializer | None) -> bool:
    return isinstance(initializer, initializers.Orthogonal) and initializer.gain == 1


@keras.saving.register_keras_serializable(package="keras_qrnn")
class QRNN(KeptStates, keras.layers.Layer):
    """Quasi-Recurrent Neural Network layer (Bradbury et al., arXiv 1611.01576).

    It takes the place of `keras.layers.LSTM`. A causal convolution computes the
    candidates z and the gates of all steps at once (section 2.1, equation 1):

        z = tanh(W_z * x)    f = sigmoid(W_f * x)    o = sigmoid(W_o * x)

    An elementwise pooling then mixes them over time (equations 3 to 5). Only this
    part is sequential. For `pooling="fo"`:

        c[t] = f[t] * c[t - 1] + (1 - f[t]) * z[t]      h[t] = o[t] * c[t]

    Args:
        units: Positive integer, size of the output and of the cell state.
        window: Positive integer, number of steps that the convolution sees, the
            present step included. Defaults to `2`.
        pooling: `"f"`, `"fo"` or `"ifo"`. Defaults to `"fo"`.
        activation: Activation of the candidates z. Defaults to `"tanh"`.
        recurrent_activation: Activation of the gates f, o and i. Defaults to
            `"sigmoid"`. The two defaults run in one fused op.
        use_bias: Boolean, whether the convolution has a bias. Defaults to `True`.
        kernel_initializer: Initializer of the `(window, features, gates * units)`
            kernel, gates in the order z, f, o, i. Defaults to
            `"glorot_uniform"`. The kernel of the context has the same initializer. One
            with a seed draws the same values for two kernels of the same size.
        bias_initializer: Initializer of the bias. Defaults to `"zeros"`.
            `keras_qrnn.initializers.ChronoBias` is for long memories.
        kernel_regularizer: Regularizer of the kernel. Defaults to `None`.
        bias_regularizer: Regularizer of the bias. Defaults to `None`.
        activity_regularizer: Regularizer of the layer's output and, as in Keras's
            recurrent layers, of the states that it returns. The window state holds
            inputs, so with `return_state=True` inputs are regularized, too. To
            regularize the output alone, put `keras.layers.ActivityRegularization` after
            the layer. Defaults to `None`.
        kernel_constraint: Constraint of the kernel. Defaults to `None`.
        bias_constraint: Constraint of the bias. Defaults to `None`.
        zoneout: Float in [0, 1), probability that a unit keeps its previous state
            at a step in training (section 2.1, "Regularization"). Inference uses
            the expectation. Defaults to `0`.
        dropout: Float in [0, 1), fraction of the input features dropped in
            training. As in LSTM, all steps of a sequence drop the same features.
            Defaults to `0`.
        seed: Random seed for zoneout, dropout and kernel_dropout.
        return_sequences: Boolean, whether to return the outputs of all steps or
            only the last output. Defaults to `False`.
        return_state: Boolean, whether to return the last states too. Defaults to
            `False`.
        go_backwards: Boolean, whether to process the input from its end, and
            return the outputs in that order. Defaults to `False`.
        stateful: Boolean, whether the last states of a batch are the first states
            of the next. It needs a static batch size. Defaults to `False`.
        zero_output_for_mask: Boolean, whether a masked step outputs zeros
            instead of repeating the previous output. Defaults to `False`.
        kernel_dropout: Float in [0, 1), fraction of the kernel's elements that are
            zero in training (DropConnect, the weight drop of arXiv 1708.02182,
            section 2). Each call draws one mask for all sequences and steps, and
            scales the other elements by `1 / (1 - kernel_dropout)`. Defaults to
            `0`.
        padding: `"causal"` or `"same"`. With `"causal"` the convolution sees a step
            and the `window - 1` steps before it. With `"same"` it sees
            `(window - 1) // 2` steps before and the rest after it, in the order of
            the scan, as `keras.layers.Conv1D` does (section 3.3: encoder convolutions
            are not masked). Such a layer has no window state and cannot be
            `stateful`. Defaults to `"causal"`.

    Call arguments:
        sequences: tensor of shape `(batch, time, features)`, cast to the layer's
            compute dtype.
        initial_state: the state before the first step: the cell state alone, or a
            list of all states (see "States"). With the cell state alone the window
            state is zeros. Defaults to zeros, or to the kept states when `stateful`.
        mask: boolean tensor of shape `(batch, time)` or `(batch, time, 1)`, of any
            pattern. A step where it is False leaves all states as they were. The
            inputs of such a step, even NaN, reach no output, state or gradient.
            Defaults to the mask that `sequences` carries.
        training: Boolean, whether zoneout, dropout and kernel_dropout act.
        previous_output: tensor of shape `(batch, units)`, the output before the first
            step. Masked steps at the start of `sequences` repeat it. Defaults to
            zeros, for `pooling="f"` to the cell state, and when `stateful` to the
            kept output.
        context: tensor of shape `(batch, features)`, one vector for each sequence, of
            any number of features. A learned projection of it, without a bias of its
            own, is added to every gate at every step (section 2.1, equation 7). Its
            kernel, `context_kernel` of shape `(features, gates * units)`, is made when
            the layer is built with a context, with the initializer, regularizer and
            constraint of the kernel. Each later call then needs a context too.
            Defaults to `None`.

    Output shape:
        `(batch, time, units)` with `return_sequences=True`, else
        `(batch, units)`; with `return_state=True` followed by the states. The output
        has the compute dtype.

    States:
        The cell state c, `(batch, units)`, and for `window > 1` the window state,
        `(batch, window - 1, features)`: the last `window - 1` inputs, oldest first.
        Both have the dtype of the weights, so under a mixed policy they are float32.
        With `padding="same"` the cell state is the only one.

        Except with `padding="same"`, a sequence may be read in pieces. Each piece
        starts with the states that the piece before returned. The outputs are then
        those of the whole sequence. Under a pure half-precision policy, such as
        `"float16"`, each cut rounds the float32 cell state once: by up to 1 part in
        2,048 (float16) or in 256 (bfloat16). A `keras.layers.Bidirectional` around the
        layer casts the states that it gets to its own compute dtype. A
        `keras_qrnn.Bidirectional` does not.

        The states are not those of an LSTM, `[h, c]`. A decoder starts from the
        encoder's cell state: `initial_state=cell`. The window state holds inputs of
        the layer that returned it. A layer of another name refuses it with an error.
        The check works on tensors that a layer returned. Arrays, copies and tensors in
        loops are not checked.

        A decoder that runs one step at a time must pass both states on. With the cell
        state alone, each step would begin with an empty window::

            state = [cell, ops.zeros((batch, window - 1, features))]
            for _ in range(steps):
                output, *state = decoder(x, initial_state=state)

        With `stateful=True` the layer keeps the states, and the last output, in
        variables. These are not weights: `get_weights`, `set_weights`, files and
        `count_params` leave them out.

    Raises:
        ValueError: if an argument is out of its range or has a meaning in LSTM only;
            if inputs, masks, states or the context have a wrong shape; if the window
            state is that of another layer; if the layer was built without a context
            and gets one, or the reverse; if a stateful layer gets another batch size.
            For the last, a graph of TensorFlow that does not know its batch size
            raises a `tf.errors.InvalidArgumentError` when it runs.

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

    _WEIGHTS: tuple[str, ...] = ("kernel", "bias", "context_kernel")  # in files

    def __init__(
        self,
        units: int,
        window: int = 2,
        pooling: str = "fo",
        activation: str | Callable[..., Tensor] = "tanh",
        recurrent_activation: str | Callable[..., Tensor] = "sigmoid",
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
        padding: str = "causal",
        **kwargs: Any,
    ) -> None:
        kwargs = _without_harmless(kwargs)
        # Autocast would cast the states, but they stay float32 in mixed precision.
        kwargs.setdefault("autocast", False)
        super().__init__(activity_regularizer=activity_regularizer, **kwargs)
        self.units = positive_integer("units", units)
        # The second argument of LSTM is the activation.
        if isinstance(window, str) and hasattr(activations, window):
            raise ValueError(
                "Argument `window` must be a positive integer. Received: "
                f"window={window!r}. Pass an activation by name: activation={window!r}"
            )
        self.window = positive_integer("window", window)
        self.pooling = one_of("pooling", pooling, tuple(GATES))
        self.activation = activations.get(activation)
        self.recurrent_activation = activations.get(recurrent_activation)
        self.use_bias = boolean("use_bias", use_bias)
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
        self.return_sequences = boolean("return_sequences", return_sequences)
        self.return_state = boolean("return_state", return_state)
        self.go_backwards = boolean("go_backwards", go_backwards)
        self.stateful = boolean("stateful", stateful)
        self.zero_output_for_mask = boolean(
            "zero_output_for_mask", zero_output_for_mask
        )
        self.padding = one_of("padding", padding, ("causal", "same"))
        if stateful and padding == "same":
            raise ValueError(
                'A stateful QRNN must have `padding="causal"`. With "same" a step sees '
                "steps after it, which are in the next batch. "
                f"Received: stateful={stateful!r}, padding={padding!r}"
            )
        self.supports_masking = True
        self.input_spec = keras.layers.InputSpec(ndim=3)
        self.kernel: keras.Variable = None
        self.bias: keras.Variable = None
        self.context_kernel: keras.Variable = None
        # Each kept state is an attribute: NNX would not find variables in a list.
        self.cell_state: keras.Variable = None
        self.window_state: keras.Variable = None
        self.last_output: keras.Variable = None
        # A QRNNStack names itself here, and keeps its last layer's last output only.
        self._stack: str | None = None
        self._keeps_output = True

    def build(
        self,
        sequences_shape: Shape,
        initial_state_shape: list[Shape] | None = None,
        context_shape: Shape | None = None,
    ) -> None:
        """Makes the weights and, when stateful, the kept states.

        If the layer is built already, this resets the kept states, as in
        `keras.layers.RNN`.

        Args:
            sequences_shape: `(batch, time, features)`.
            initial_state_shape: shapes of the states. It is not used.
            context_shape: `(batch, features)` of the context. None for a layer that
                gets none.

        Raises:
            ValueError: if `features` is None, or if `batch` is None and the layer is
                stateful; if `context_shape` is no such shape.
        """
        batch, _, features = sequences_shape
        if self.kernel is not None:
            self.reset_state()
            return
        if features is None:
            raise ValueError(
                "The last dimension of the inputs to QRNN must be known. "
                f"Received: sequences.shape={tuple(sequences_shape)}"
            )
        if self.stateful and batch is None:
            raise ValueError(
                "A stateful QRNN needs a static batch size: give the model an "
                "`Input(batch_shape=...)` or call it on data. "
                f"Received: sequences.shape={tuple(sequences_shape)}"
            )
        if context_shape is not None:
            _check_context_shape(context_shape, (batch, None))
        channels = len(GATES[self.pooling]) * self.units
        self.kernel = self.add_weight(
            shape=(self.window, features, channels),
            name="kernel",
            initializer=self.kernel_initializer,
            regularizer=self.kernel_regularizer,
            constraint=self.kernel_constraint,
        )
        if self.use_bias:
            initializer = self.bias_initializer
            if isinstance(initializer, ChronoBias):
                initializer = partial(initializer, pooling=self.pooling)
            self.bias = self.add_weight(
                shape=(channels,),
                name="bias",
                initializer=initializer,
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
            )
        if context_shape is not None:
            initializer = self.kernel_initializer
            if isinstance(initializer, Initializer):
                # The same one would draw the same values for a kernel of this size.
                initializer = initializer.clone()
            self.context_kernel = self.add_weight(
                shape=(context_shape[1], channels),
                name="context_kernel",
                initializer=initializer,
                regularizer=self.kernel_regularizer,
                constraint=self.kernel_constraint,
            )
        if self.stateful:
            shapes = self._state_shapes(batch, features)
            if self._keeps_output:
                shapes["last_output"] = shapes["cell_state"]
            for name, shape in shapes.items():
                state = self.add_weight(
                    shape=shape,
                    name=name,
                    initializer="zeros",
                    trainable=False,
                    autocast=False,
                )
                setattr(self, name, state)
        self.input_spec = keras.layers.InputSpec(ndim=3, axes={-1: features})

    @property
    def states(self) -> list[keras.Variable] | None:
        """The kept states of a built stateful layer, else None.

        They are the cell state and, for `window > 1`, the window state, in the order of
        `initial_state`.
        """
        states = [self.cell_state, self.window_state]
        return [state for state in states if state is not None] or None

    @property
    def kept(self) -> list[keras.Variable]:
        """The kept states and the last output, which masked steps repeat."""
        kept = [self.cell_state, self.window_state, self.last_output]
        return [state for state in kept if state is not None]

    @property
    def _accumulator(self) -> str:
        """The dtype of sums over time and over the batch: see `ops/backend.py`."""
        # A tensor's dtype is not compared: on PyTorch it equals no string.
        return "float64" if self.compute_dtype == "float64" else "float32"

    def _state_shapes(
        self, batch: int | None, features: int | None
    ) -> dict[str, Shape]:
        """The shapes of the states, by name."""
        shapes: dict[str, Shape] = {"cell_state": (batch, self.units)}
        if self.window > 1 and self.padding == "causal":
            shapes["window_state"] = (batch, self.window - 1, features)
        return shapes

    def call(
        self,
        sequences: Tensor,
        initial_state: Tensor | list[Tensor] | None = None,
        mask: Tensor | None = None,
        training: bool = False,
        previous_output: Tensor | None = None,
        context: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        """See "Call arguments" and "Output shape" in the documentation of the class."""
        sequences, mask = self._in_scan_order(sequences, mask)
        context = self._checked_context(sequences, context)
        states, previous_output = self._first_states(
            sequences, initial_state, previous_output, mask
        )
        valid = None
        if mask is not None:
            sequences, valid = compact(sequences, mask)
        outputs, states = self._steps(sequences, valid, states, training, context)
        outputs, last_output = self._at_their_steps(
            outputs, mask, valid, previous_output
        )
        if self.stateful:
            self._keep(states, last_output)
        if not self.return_state:
            return outputs
        return (outputs, *self._returned(states))

    def _steps(
        self,
        sequences: Tensor,
        valid: Tensor | None,
        states: list[Tensor],
        training: bool,
        context: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """The outputs of all steps, and the states after the valid ones.

        Args:
            sequences: `(batch, time, features)` in scan order, valid steps first; with
                `padding="same"` zeros behind them.
            valid: the number of valid steps, `(batch,)`, or None for all.
            states: as `_first_states` returns them.
            training: whether zoneout and the dropouts act.
            context: as `_checked_context` returns it.

        Returns:
            The outputs, `(batch, time, units)`, of which those behind the valid steps
            mean nothing, and the states as a list; without the window state if the
            layer neither returns nor keeps it.
        """
        cell, *window = states
        inputs = self._with_window(sequences, window)
        outputs, cell = self._outputs_and_cell(
            self._drop(inputs, training),
            cell,
            self._update_scale(sequences, valid, training),
            training,
            context,
        )
        if window and (self.return_state or self.stateful):
            return outputs, [cell, last_steps(inputs, valid, self.window - 1)]
        return outputs, [cell]

    def _at_their_steps(
        self,
        outputs: Tensor,
        mask: Tensor | None,
        valid: Tensor | None,
        previous_output: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """What the layer returns, and the output that the next masked step repeats.

        A layer that keeps nothing needs no such output: it may be None.

        Args:
            outputs: `(batch, time, units)`, valid steps first.
            mask: `(batch, time)` in scan order, or None.
            valid: the number of valid steps, `(batch,)`, or None for all.
            previous_output: `(batch, units)`. It is not used if `mask` is None.
        """
        if mask is None:
            if not self.return_sequences:
                last = apart(outputs[:, -1], outputs, 1)
                return last, last
            return outputs, outputs[:, -1] if self.stateful else None
        if self.return_sequences:
            outputs = expand(outputs, mask, previous_output)
            last = outputs[:, -1]
        else:
            last = outputs = last_valid(outputs, valid, previous_output)
            mask = mask[:, -1]
        if self.zero_output_for_mask:
            # LiteRT knows no index `None` of booleans.
            is_valid = ops.expand_dims(mask, -1)
            outputs = ops.where(is_valid, outputs, ops.zeros((), outputs.dtype))
        return outputs, last

    def _returned(self, states: list[Tensor]) -> list[Tensor]:
        """The states as a call returns them."""
        states = [as_value(state, self.variable_dtype) for state in states]
        for window in states[1:]:
            _window_owner.remember(window, self._stack or self.name)
        return states

    def compute_gates(
        self,
        sequences: Tensor,
        initial_state: Tensor | list[Tensor] | None = None,
        mask: Tensor | None = None,
        context: Tensor | None = None,
    ) -> list[Tensor]:
        """The activated gates, for a look into a trained layer.

        Args:
            sequences: float tensor of shape `(batch, time, features)`.
            initial_state: as in a call of the layer. Defaults to zeros, or to
                the kept states when `stateful`; these do not change.
            mask: as in a call of the layer.
            context: as in a call of the layer.

        Returns:
            A list of the gates in the order z, f, o, i, as far as the pooling has
            them: tensors of shape `(batch, time, units)` in the compute dtype. Zoneout
            and dropout are off. With `go_backwards` the steps have the order of the
            outputs. In a masked step f is 1 and the others are 0.

        Raises:
            ValueError: if `sequences` is symbolic; as in a call of the layer.
        """
        if isinstance(sequences, keras.KerasTensor):
            raise ValueError(
                "Argument `sequences` of `compute_gates` must be a tensor that has "
                "values. Received: the symbolic input of a model, of shape "
                f"{sequences.shape}"
            )
        if not ops.is_tensor(sequences):
            sequences = ops.convert_to_tensor(sequences, dtype=self.compute_dtype)
        if not self.built:
            shape = _shape_of(context)
            if context is not None:
                _check_context_shape(shape, (sequences.shape[0], None))
            self.build(tuple(sequences.shape), context_shape=shape)
        sequences, mask = self._in_scan_order(sequences, mask)
        context = self._checked_context(sequences, context)
        (_, *window), _ = self._first_states(sequences, initial_state, None, None)
        if mask is not None:
            sequences, _ = compact(sequences, mask)
        inputs = self._with_window(sequences, window)
        gates = self._activate(
            backend.causal_conv(inputs, *self._weights(inputs, context=context)),
            self.pooling,
        )
        if mask is None:
            return gates
        masked = {name: ops.zeros_like(gates[0][:, 0]) for name in GATES[self.pooling]}
        masked["f"] = ops.ones_like(gates[0][:, 0])
        return [
            ops.where(mask[:, :, None], expand(gate, mask, at_mask), at_mask[:, None])
            for gate, at_mask in zip(gates, masked.values(), strict=True)
        ]

    def _in_scan_order(
        self, sequences: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Checked inputs of the compute dtype and their mask, in scan order."""
        mask = mask_of(sequences, mask)  # first: a cast loses the mask
        sequences = on_device(as_value(sequences, self.compute_dtype))
        check_time(sequences)
        if sequences.shape[-1] is None:
            # A graph of TensorFlow may not know the features; the kernel does.
            batch, time, _ = ops.shape(sequences)
            sequences = ops.reshape(sequences, (batch, time, self.kernel.shape[1]))
        if self.stateful:
            check_batch_size(sequences, self.cell_state.shape[0])
        if self.go_backwards:
            sequences = ops.flip(sequences, axis=1)
            mask = None if mask is None else ops.flip(mask, axis=1)
        return sequences, mask

    def _first_states(
        self,
        sequences: Tensor,
        initial_state: Tensor | list[Tensor] | None,
        previous_output: Tensor | None,
        mask: Tensor | None,
    ) -> tuple[list[Tensor], Tensor | None]:
        """The states before the first step, and the previous output if there is a mask.

        The cell state has the dtype of the weights, the others have the compute dtype.
        """
        batch, _, features = sequences.shape
        given = self._checked_states(batch, features, initial_state, previous_output)
        given = [
            checked_at_run_time("initial_state", state, sequences) for state in given
        ]
        if previous_output is not None and mask is not None:
            previous_output = checked_at_run_time(
                "previous_output",
                as_value(previous_output, self.compute_dtype),
                sequences,
            )
        if not given and self.stateful:
            given = with_rows_of(sequences, self.kept)
            if self._keeps_output:
                *given, last_output = given
                if previous_output is None:
                    previous_output = last_output
        shapes = self._state_shapes(rows(sequences), features)
        for shape in list(shapes.values())[len(given) :]:
            given.append(zeros(shape, self.variable_dtype, sequences))
        cell = as_value(given[0], self.variable_dtype)
        window = [as_value(state, self.compute_dtype) for state in given[1:]]
        if mask is None:
            return [cell, *window], None
        if previous_output is None:
            # Under f-pooling the cell state is the output.
            previous_output = cell if self.pooling == "f" else ops.zeros_like(cell)
        return [cell, *window], as_value(previous_output, self.compute_dtype)

    def _checked_states(
        self,
        batch: int | None,
        features: int | None,
        initial_state: Tensor | list[Tensor] | None,
        previous_output: Tensor | None,
    ) -> list[Tensor]:
        """The given states as a list. It is empty if none is given."""
        if initial_state is None and previous_output is None:
            return []
        states = initial_state if isinstance(initial_state, (list, tuple)) else []
        if self.padding == "same" and len(states) > 1:
            raise ValueError(
                'Argument `initial_state` of a QRNN with `padding="same"` must be the '
                "cell state alone. The convolution sees steps on both sides, so there "
                "is no window state. "
                f"Received: states of the shapes {shapes_of(states)}"
            )
        owner = "a QRNN"
        if self._stack is not None:
            owner = f"layer '{self.name}' of QRNNStack '{self._stack}'"
        shapes = self._state_shapes(batch, features)
        given = checked_states(initial_state, shapes, owner)
        if len(given) > 1:
            _window_owner.check(given[1], self._stack or self.name)
        if previous_output is not None:
            if not hasattr(previous_output, "shape"):
                previous_output = ops.convert_to_tensor(previous_output)
            expected, received = (batch, self.units), tuple(previous_output.shape)
            if not fits(received, expected):
                raise ValueError(
                    "Argument `previous_output` must have shape (batch, units) = "
                    f"{expected}. Received: previous_output.shape={received}"
                )
        return given

    def _with_window(self, sequences: Tensor, window: list[Tensor]) -> Tensor:
        """The sequences with `window - 1` more steps for the convolution.

        These are the window state in front, or zeros on both sides.
        """
        if window:
            return joined([*window, sequences])
        if self.window == 1:
            return sequences
        before = (self.window - 1) // 2
        after = self.window - 1 - before
        step = ops.zeros_like(sequences[:, :1])
        return joined([*[step] * before, sequences, *[step] * after])

    def _keep(self, states: list[Tensor], last_output: Tensor) -> None:
        if self._keeps_output:
            states = [*states, last_output]
        for variable, state in zip(self.kept, states, strict=True):
            variable.assign(ops.cast(state, variable.dtype))

    def _drop(self, inputs: Tensor, training: bool) -> Tensor:
        if not (training and self.dropout):
            return inputs
        noise_shape = (ops.shape(inputs)[0], 1, inputs.shape[-1])
        return keras.random.dropout(
            inputs, self.dropout, noise_shape=noise_shape, seed=self.seed_generator
        )

    def _checked_context(
        self, sequences: Tensor, context: Tensor | None
    ) -> Tensor | None:
        """The context of a call. The sequences or the context may be symbolic.

        Raises:
            ValueError: if there is none and the layer has a kernel for one, or the
                other way round; if it has another shape.
        """
        if context is None and self.context_kernel is None:
            return None
        if self.context_kernel is None:
            raise ValueError(
                f"Layer '{self.name}' was built without a context, so it has no kernel "
                "for one. Pass `context`, a tensor or an array, from the first call "
                f"on. Received: context.shape={_shape_of(context)}"
            )
        expected = sequences.shape[0], self.context_kernel.shape[0]
        if context is None:
            raise ValueError(
                f"Layer '{self.name}' was built with a context. Argument `context` "
                f"must have shape (batch, features) = {expected}. Received: None"
            )
        _check_context_shape(_shape_of(context), expected)
        if any(isinstance(each, keras.KerasTensor) for each in (sequences, context)):
            return context
        return checked_at_run_time("context", context, sequences)

    def _weights(
        self,
        inputs: Tensor,
        training: bool = False,
        context: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The kernel, and the bias as `ops/backend.py` takes it. The compute dtype."""
        dtype = self.compute_dtype
        kernel = as_value(self.kernel, dtype, inputs)
        if training and self.kernel_dropout:
            # For the gradient a boolean mask is kept: one byte for each element.
            noise = keras.random.uniform(
                self.kernel.shape, dtype="float32", seed=self.seed_generator
            )
            kernel = ops.where(
                noise >= self.kernel_dropout,
                kernel * (1.0 / (1.0 - self.kernel_dropout)),
                ops.zeros((), dtype),
            )
        bias = self.bias
        if context is not None:
            # Keras's `matmul` computes float64 in float32 on PyTorch and NumPy.
            context_kernel = as_value(self.context_kernel, dtype, inputs)
            projection = as_value(context, dtype) @ context_kernel
            if bias is not None:
                # In float32, because the gradient by the bias is a sum over the batch.
                exact = self._accumulator
                projection = as_value(projection, exact) + as_value(bias, exact, inputs)
            bias = projection
        return kernel, None if bias is None else as_value(bias, dtype, inputs)

    def _activate(self, gates: Tensor, pooling: str) -> list[Tensor]:
        z, *others = ops.split(gates, len(GATES[pooling]), axis=-1)
        activated = [self.activation(z), *map(self.recurrent_activation, others)]
        # An activation may compute in another dtype, such as float32.
        return [ops.cast(gate, gates.dtype) for gate in activated]

    def _outputs_and_cell(
        self,
        inputs: Tensor,
        cell: Tensor,
        update_scale: Tensor | float | None,
        training: bool,
        context: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """The outputs of all steps and the last cell state.

        `AttentionQRNN` overrides it: its output gates come after the attention.

        Args:
            inputs: `(batch, window - 1 + time, features)`.
            cell: the cell state before the first step, `(batch, units)`.
            update_scale: as in `ops/backend.py`.
            training: whether the kernel dropout acts.
            context: `(batch, features)`, or None.
        """
        kernel, bias = self._weights(inputs, training, context)
        return self._conv_pool(inputs, kernel, bias, cell, update_scale, self.pooling)

    def _conv_pool(
        self,
        inputs: Tensor,
        kernel: Tensor,
        bias: Tensor | None,
        cell: Tensor,
        update_scale: Tensor | float | None,
        pooling: str,
    ) -> tuple[Tensor, Tensor]:
        """`Backend.conv_pool` with the layer's activations."""
        fused = (
            self.activation is activations.tanh
            and self.recurrent_activation is activations.sigmoid
        )
        if fused:
            return backend.conv_pool(inputs, kernel, bias, cell, update_scale, pooling)
        gates = self._activate(backend.causal_conv(inputs, kernel, bias), pooling)
        gates = ops.concatenate(gates, axis=-1)
        return backend.pool(gates, cell, update_scale, pooling, activate=False)

    def _update_scale(
        self, sequences: Tensor, valid: Tensor | None, training: bool
    ) -> Tensor | float | None:
        """The `update_scale` of `ops/backend.py`: zoneout, and 0 in masked steps."""
        if not self.zoneout and valid is None:
            return None
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
        is_valid = in_front(time, valid)
        if update_scale is None:
            return is_valid
        if isinstance(update_scale, float):
            return update_scale * ops.cast(is_valid, self._accumulator)
        return ops.logical_and(update_scale, is_valid)

    def reset_state(self) -> None:
        """Sets the kept state of a stateful layer to zeros."""
        for variable in self.kept:
            variable.assign(ops.zeros(variable.shape, variable.dtype))

    def reset_states(self) -> None:
        """Alias of `reset_state`, as in `keras.layers.LSTM`."""
        self.reset_state()

    def compute_output_shape(
        self,
        sequences_shape: Shape,
        initial_state_shape: list[Shape] | None = None,
        context_shape: Shape | None = None,
    ) -> Shape | tuple[Shape, ...]:
        batch, time, features = sequences_shape
        output: Shape = (batch, self.units)
        if self.return_sequences:
            output = (batch, time, self.units)
        if not self.return_state:
            return output
        return (output, *self._state_shapes(batch, features).values())

    def compute_output_spec(
        self,
        sequences: Tensor,
        initial_state: Tensor | list[Tensor] | None = None,
        mask: Tensor | None = None,
        training: bool = False,
        previous_output: Tensor | None = None,
        context: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        check_time(sequences)
        mask_of(sequences, mask)
        batch, _, features = sequences.shape
        if self.stateful:
            check_batch_size(sequences, self.cell_state.shape[0])
        self._checked_context(sequences, context)
        self._checked_states(batch, features, initial_state, previous_output)
        return result_specs(self, self.compute_output_shape(sequences.shape))

    def compute_mask(
        self, sequences: Tensor, mask: Tensor | list[Tensor | None] | None
    ) -> Tensor | list[Tensor | None] | None:
        mask = keras.tree.flatten(mask)[0]
        output_mask = mask if self.return_sequences else None
        if not self.return_state:
            return output_mask
        return [output_mask] + [None] * len(self._state_shapes(None, None))

    def _own_weights(self) -> dict[str, keras.Variable]:
        """The weights by their names in files. A subclass's own ones have numbers."""
        named = {name: getattr(self, name) for name in self._WEIGHTS}
        named = {name: weight for name, weight in named.items() if weight is not None}
        others: dict[str, keras.Variable] = {}
        super().save_own_variables(others)
        left_out = {id(each) for each in [*named.values(), *self.kept]}
        rest = [each for each in others.values() if id(each) not in left_out]
        return named | {str(number): each for number, each in enumerate(rest)}

    def save_own_variables(self, store: MutableMapping[str, Any]) -> None:
        """Writes the weights. The kept states belong to a run and are left out."""
        for name, weight in self._own_weights().items():
            store[name] = weight

    def load_own_variables(self, store: Mapping[str, Any]) -> None:
        """Reads what `save_own_variables` wrote.

        Raises:
            ValueError: if the file has other weights than the layer, or weights of
                other shapes.
        """
        weights = self._own_weights()
        if set(store.keys()) != set(weights):
            hint = ""
            if not self.built:
                hint = " The layer is not built yet."
            elif {"bias"} == set(store.keys()) ^ set(weights):
                hint = " One of the two was made with `use_bias=False`."
            elif {"context_kernel"} == set(store.keys()) ^ set(weights):
                hint = " One of the two was built with a `context`."
            elif not store.keys():
                # Keras shows the error of the last place that it has tried.
                shapes = [f"{n} {tuple(w.shape)}" for n, w in weights.items()]
                hint = (
                    " The file was saved from a layer of other sizes or from another "
                    f"model. The layer needs weights of shapes {', '.join(shapes)}."
                )
            raise ValueError(
                f"Layer '{self.name}' and the file have different weights.{hint} "
                f"Expected: {sorted(weights)}. Received: {sorted(store.keys())}"
            )
        for name, weight in weights.items():
            found = tuple(store[name].shape)
            if found != tuple(weight.shape):
                raise ValueError(
                    f"Weight `{name}` of layer '{self.name}' must have shape "
                    f"{tuple(weight.shape)}. Received: shape {found} in the file"
                )
        for name, weight in weights.items():
            weight.assign(store[name])

    def get_config(self) -> dict[str, Any]:
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
            "padding": self.padding,
        }
        return {**super().get_config(), **config}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "QRNN":
        """A layer from what `get_config` gave, of a QRNN or of an LSTM.

        The config of an LSTM names all its arguments, also those that a QRNN does not
        take. These are left out if they have LSTM's defaults, such as
        `unit_forget_bias=True` and an orthogonal `recurrent_initializer`, or if they
        change nothing, such as `recurrent_dropout=0`. A GRU's `reset_after=True` is
        left out, too. All biases of the QRNN start from `bias_initializer`.

        Args:
            config: the arguments by name.

        Returns:
            A layer that is not built. Weights are not carried over.

        Raises:
            ValueError: if a QRNN cannot have an argument, such as
                `recurrent_dropout=0.2`.
        """
        kept = {
            name: value
            for name, value in config.items()
            if name not in _DEFAULTS_OF_OTHERS or not _DEFAULTS_OF_OTHERS[name](value)
        }
        # Keras would wrap an error of the constructor in a long one.
        return super().from_config(_without_harmless(kept))


def _shape_of(context: Tensor) -> Shape | None:
    return tuple(context.shape) if hasattr(context, "shape") else None


def _check_context_shape(received: Shape | None, expected: Shape) -> None:
    """Checks the shape of a context. `expected` may have None for any size."""
    if received is None or not fits(received, expected) or received[1] is None:
        raise ValueError(
            "Argument `context` must be a tensor or an array of shape "
            f"(batch, features) = {expected}, its features known. "
            f"Received: context.shape={received}"
        )
