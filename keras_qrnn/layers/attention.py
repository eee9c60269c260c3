"""The last layer of a decoder: a QRNN that attends to the encoder's outputs."""

from typing import Any

import keras
from keras import constraints, initializers, ops, regularizers
from keras.constraints import Constraint
from keras.initializers import Initializer
from keras.regularizers import Regularizer

from keras_qrnn._types import Shape, Tensor
from keras_qrnn.layers._masks import compact, expand, fits, mask_of
from keras_qrnn.layers._states import as_value
from keras_qrnn.layers.qrnn import QRNN
from keras_qrnn.ops.backend import backend
from keras_qrnn.ops.scan import checked_at_run_time


@keras.saving.register_keras_serializable(package="keras_qrnn")
class AttentionQRNN(QRNN):
    """A QRNN whose outputs attend to an encoder (arXiv 1611.01576, equation 8).

    It is the last layer of the paper's decoder (section 2.1, "Encoder-Decoder
    Models"). Convolution, gates and states are those of `QRNN` with fo-pooling. The
    output gate is applied last. Before it, the state c attends to the outputs h~ of the
    encoder, by dot products without a scale:

        a[s, t] = softmax over s of (c[t] . h~[s])
        k[t]    = sum over s of a[s, t] * h~[s]
        h[t]    = o[t] * (W_k k[t] + W_c c[t])

    Args:
        units: Positive integer, size of the output and of the cell state. The
            encoder's outputs must be of this size too.
        window: As in `QRNN`. Defaults to `2`.
        output_kernel_initializer: Initializer of the `(2 * units, units)` kernel,
            W_k above W_c. Defaults to `"glorot_uniform"`.
        output_kernel_regularizer: Regularizer of that kernel. Defaults to `None`.
        output_kernel_constraint: Constraint of that kernel. Defaults to `None`.
        **kwargs: The other arguments of `QRNN`. `pooling` may be `"fo"` only.

    Call arguments:
        sequences: tensor of shape `(batch, time, features)`, as in `QRNN`.
        encoder_outputs: tensor of shape `(batch, source_time, units)`, cast to the
            accumulator's dtype: float32, or float64 in a float64 layer.
        initial_state: as in `QRNN`.
        mask: as in `QRNN`, the mask of `sequences`.
        encoder_mask: boolean tensor of shape `(batch, source_time)` or
            `(batch, source_time, 1)`, of any pattern. A source step where it is False
            gets no attention. What stands there, even NaN, reaches no output and no
            gradient. Where all source steps of a sequence are False, k is zero.
            Defaults to the mask that `encoder_outputs` carries.
        training: as in `QRNN`.
        previous_output: as in `QRNN`.
        context: as in `QRNN`.
        return_attention_scores: Boolean, whether to return the attention a too.

    Output shape:
        As in `QRNN`. With `return_attention_scores=True` the attention follows the
        outputs, and the states follow it. The attention has shape
        `(batch, time, source_time)`, whatever `return_sequences` is, and the compute
        dtype. It is zero in masked steps of `sequences` and of the encoder.

    States:
        As in `QRNN`. The attention needs no state: a sequence may be read in pieces,
        or one step at a time, with the same `encoder_outputs` for each piece.

    Raises:
        ValueError: as in `QRNN`; if `pooling` is not `"fo"`; if `encoder_outputs` or
            its mask has a wrong shape.

    Example:

    >>> source, target = np.ones((32, 9, 16)), np.ones((32, 10, 8))
    >>> layer = AttentionQRNN(16, return_sequences=True)
    >>> outputs, attention = layer(target, source, return_attention_scores=True)
    >>> outputs.shape, attention.shape
    ((32, 10, 16), (32, 10, 9))
    """

    _WEIGHTS: tuple[str, ...] = (*QRNN._WEIGHTS, "output_kernel")

    def __init__(
        self,
        units: int,
        window: int = 2,
        *,
        output_kernel_initializer: str | Initializer = "glorot_uniform",
        output_kernel_regularizer: str | Regularizer | None = None,
        output_kernel_constraint: str | Constraint | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(units, window, **kwargs)
        if self.pooling != "fo":
            raise ValueError(
                "Argument `pooling` of an AttentionQRNN must be 'fo': the attention "
                "stands between the state and the output gate. "
                f"Received: pooling={self.pooling!r}"
            )
        self.output_kernel_initializer = initializers.get(output_kernel_initializer)
        self.output_kernel_regularizer = regularizers.get(output_kernel_regularizer)
        self.output_kernel_constraint = constraints.get(output_kernel_constraint)
        self.output_kernel: keras.Variable = None

    def build(
        self,
        sequences_shape: Shape,
        initial_state_shape: list[Shape] | None = None,
        context_shape: Shape | None = None,
        encoder_outputs_shape: Shape | None = None,
    ) -> None:
        """Makes the weights and, when stateful, the kept states, as in `QRNN`.

        Args:
            sequences_shape, initial_state_shape, context_shape: as in `QRNN`.
            encoder_outputs_shape: `(batch, source_time, units)`. No weight depends on
                it.

        Raises:
            ValueError: as in `QRNN`; if `encoder_outputs_shape` does not fit.
        """
        if encoder_outputs_shape is not None:
            self._check_source(sequences_shape[0], encoder_outputs_shape)
        super().build(sequences_shape, initial_state_shape, context_shape)
        if self.output_kernel is None:
            self.output_kernel = self.add_weight(
                shape=(2 * self.units, self.units),
                name="output_kernel",
                initializer=self.output_kernel_initializer,
                regularizer=self.output_kernel_regularizer,
                constraint=self.output_kernel_constraint,
            )

    def call(  # type: ignore[override]
        self,
        sequences: Tensor,
        encoder_outputs: Tensor,
        initial_state: Tensor | list[Tensor] | None = None,
        mask: Tensor | None = None,
        encoder_mask: Tensor | None = None,
        training: bool = False,
        previous_output: Tensor | None = None,
        context: Tensor | None = None,
        return_attention_scores: bool = False,
    ) -> Tensor | tuple[Tensor, ...]:
        """See "Call arguments" and "Output shape" in the documentation of the class."""
        sequences, mask = self._in_scan_order(sequences, mask)
        context = self._checked_context(sequences, context)
        source, source_mask = self._source(sequences, encoder_outputs, encoder_mask)
        states, previous_output = self._first_states(
            sequences, initial_state, previous_output, mask
        )
        valid = None
        if mask is not None:
            sequences, valid = compact(sequences, mask)
        (cells, output_gates), states = self._steps(
            sequences, valid, states, training, context
        )
        attention, attended = _attend(cells, source, source_mask)
        kernel = as_value(self.output_kernel, self.compute_dtype, sequences)
        attended = ops.cast(attended, cells.dtype)
        # Keras's `matmul` computes float64 in float32 on PyTorch and NumPy.
        mixed = attended @ kernel[: self.units] + cells @ kernel[self.units :]
        outputs, last_output = self._at_their_steps(
            output_gates * mixed, mask, valid, previous_output
        )
        if self.stateful:
            self._keep(states, last_output)
        results = [outputs]
        if return_attention_scores:
            if mask is not None:
                zeros = ops.zeros_like(attention)
                attention = expand(attention, mask, zeros[:, 0])
                attention = ops.where(ops.expand_dims(mask, 2), attention, zeros)
            results.append(ops.cast(attention, self.compute_dtype))
        if self.return_state:
            results += self._returned(states)
        return results[0] if len(results) == 1 else tuple(results)

    def _outputs_and_cell(
        self,
        inputs: Tensor,
        cell: Tensor,
        update_scale: Tensor | float | None,
        training: bool,
        context: Tensor | None,
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """The cell states and the output gates of all steps, and the last cell state.

        The gates z and f alone make the cell state, by f-pooling.
        """
        kernel, bias = self._weights(inputs, training, context)
        parts = slice(2 * self.units), slice(2 * self.units, None)
        (kernel_zf, kernel_o), (bias_zf, bias_o) = (
            [None if weight is None else weight[..., part] for part in parts]
            for weight in (kernel, bias)
        )
        cells, cell = self._conv_pool(
            inputs, kernel_zf, bias_zf, cell, update_scale, "f"
        )
        logits = backend.causal_conv(inputs, kernel_o, bias_o)
        output_gates = ops.cast(self.recurrent_activation(logits), logits.dtype)
        return (cells, output_gates), cell

    def _source(
        self, sequences: Tensor, encoder_outputs: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The encoder's outputs in the accumulator's dtype, and their mask.

        Masked steps are zero: a weight of zero would not keep NaN out.
        """
        mask = mask_of(encoder_outputs, mask, "encoder_mask")  # before a cast loses it
        source = as_value(encoder_outputs, self._accumulator)
        self._check_source(sequences.shape[0], source.shape)
        source = checked_at_run_time("encoder_outputs", source, sequences)
        if mask is not None:
            is_valid = ops.expand_dims(mask, 2)
            source = ops.where(is_valid, source, ops.zeros((), source.dtype))
        return source, mask

    def _check_source(self, batch: int | None, shape: Shape) -> None:
        expected = batch, None, self.units
        if not fits(tuple(shape), expected) or shape[1] == 0:
            raise ValueError(
                "Argument `encoder_outputs` must have shape (batch, source_time, "
                f"units) = {expected}, with at least one step. Its dot products with "
                "the cell state need as many features as the layer has units. "
                f"Received: encoder_outputs.shape={tuple(shape)}"
            )

    def compute_output_shape(
        self,
        sequences_shape: Shape,
        initial_state_shape: list[Shape] | None = None,
        context_shape: Shape | None = None,
        encoder_outputs_shape: Shape | None = None,
    ) -> Shape | tuple[Shape, ...]:
        return super().compute_output_shape(sequences_shape)

    def compute_output_spec(  # type: ignore[override]
        self,
        sequences: Tensor,
        encoder_outputs: Tensor,
        initial_state: Tensor | list[Tensor] | None = None,
        mask: Tensor | None = None,
        encoder_mask: Tensor | None = None,
        training: bool = False,
        previous_output: Tensor | None = None,
        context: Tensor | None = None,
        return_attention_scores: bool = False,
    ) -> Tensor | tuple[Tensor, ...]:
        self._check_source(sequences.shape[0], encoder_outputs.shape)
        mask_of(encoder_outputs, encoder_mask, "encoder_mask")
        specs = super().compute_output_spec(
            sequences, initial_state, mask, training, previous_output, context
        )
        if not return_attention_scores:
            return specs
        outputs, *states = specs if self.return_state else (specs,)
        shape = (*sequences.shape[:2], encoder_outputs.shape[1])
        return (outputs, keras.KerasTensor(shape, self.compute_dtype), *states)

    def get_config(self) -> dict[str, Any]:
        initializer = initializers.serialize(self.output_kernel_initializer)
        regularizer = regularizers.serialize(self.output_kernel_regularizer)
        constraint = constraints.serialize(self.output_kernel_constraint)
        config = {
            "output_kernel_initializer": initializer,
            "output_kernel_regularizer": regularizer,
            "output_kernel_constraint": constraint,
        }
        return {**super().get_config(), **config}


def _attend(
    cells: Tensor, source: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Dot-product attention, unscaled.

    `keras.layers.Attention` computes the same where there is no mask. With one it gives
    NaN in float16, and attends to masked steps where all are masked.

    Args:
        cells: queries `(batch, time, units)`, of any float dtype.
        source: keys and values `(batch, source_time, units)`, of the accumulator's
            dtype, which all sums here are computed in; zero in masked steps.
        mask: `(batch, source_time)`, or None.

    Returns:
        The attention `(batch, time, source_time)` and the attended
        `(batch, time, units)`, in the accumulator's dtype.
    """
    scores = ops.cast(cells, source.dtype) @ ops.swapaxes(source, 1, 2)
    if mask is not None:
        mask = ops.expand_dims(mask, 1)
        lowest = ops.full((), -1e30, scores.dtype)
        scores = ops.where(mask, scores, lowest)
    attention = ops.softmax(scores, axis=-1)
    if mask is not None:
        attention = ops.where(mask, attention, ops.zeros((), attention.dtype))
    return attention, attention @ source
