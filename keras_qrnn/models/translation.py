"""The encoder-decoder for translation of arXiv 1611.01576, and the equal LSTM."""

from typing import Any

import keras
from keras import ops

from keras_qrnn._checks import one_of, positive_integer, rate
from keras_qrnn._types import Shape, Tensor
from keras_qrnn.data.characters import CharacterVocabulary
from keras_qrnn.layers import QRNN, AttentionQRNN
from keras_qrnn.layers._masks import steps_at
from keras_qrnn.losses import (
    part_of_mean,
    part_of_weighted_mean,
    token_cross_entropy,
)
from keras_qrnn.metrics import Perplexity
from keras_qrnn.models._task_model import TaskModel
from keras_qrnn.ops.equations import GATES

CELLS = ("qrnn", "lstm")
PAD = CharacterVocabulary.pad


@keras.saving.register_keras_serializable(package="keras_qrnn")
class TranslationModel(TaskModel):
    """Encoder, decoder and attention of arXiv 1611.01576, sections 2.1 and 3.3.

    The encoder is a stack of QRNNs whose convolutions see both sides
    (`padding="same"`). Each decoder layer takes the last output of the encoder layer of
    its depth as its context (equation 7). The last decoder layer attends to the outputs
    of the last encoder layer (equation 8).

    With `cell="lstm"` the layers are `keras.layers.LSTM`. There the states of each
    encoder layer are the first states of the decoder layer of its depth. The last
    decoder layer's outputs attend in the same way, unscaled, and the result is
    `tanh(W_k k + W_h h)` (Luong et al., arXiv 1508.04025), because an LSTM has no
    output gate to apply afterwards.

    Training is by teacher forcing. The loss of a batch is the mean cross-entropy of its
    characters, in nats, weighted by the sample weights.

    Args:
        vocab_size: Positive integer, number of characters and symbols.
        emb_dim: Positive integer, size of the two embeddings.
        units: Positive integer, size of each layer.
        layers: Positive integer, number of encoder layers and of decoder layers.
        first_window: Positive integer, window of the first encoder layer.
        window: Positive integer, window of all other layers.
        pooling: Pooling of all QRNN layers but the last decoder layer.
        zoneout: Zoneout rate of the QRNN layers, in [0, 1).
        dropout: Dropout rate after the embeddings and each layer, in [0, 1).
        cell: `"qrnn"` or `"lstm"`.
        seed: Seed of dropout and zoneout.
        vocabulary: Fingerprint of the vocabulary, saved with the model.
        longest: Number of characters of the longest sentence trained on, saved with
            the model. None if it is not known.

    Call arguments:
        inputs: two int tensors. The source, `(batch, source time)`, is reversed and
            padded at its end with id 0. The targets, one step late, have shape
            `(batch, time)`. Each source has at least one character.
        training: Boolean, whether dropout and zoneout act.

    Output shape:
        `(batch, time, vocab_size)`: the logits. They are float32 in mixed precision.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        vocab_size: int,
        emb_dim: int = 128,
        units: int = 320,
        layers: int = 4,
        first_window: int = 6,
        window: int = 2,
        pooling: str = "fo",
        zoneout: float = 0.0,
        dropout: float = 0.0,
        cell: str = "qrnn",
        seed: int | None = None,
        vocabulary: str | None = None,
        longest: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        vocab_size = positive_integer("vocab_size", vocab_size)
        emb_dim = positive_integer("emb_dim", emb_dim)
        units = positive_integer("units", units)
        layers = positive_integer("layers", layers)
        first_window = positive_integer("first_window", first_window)
        window = positive_integer("window", window)
        if longest is not None:
            longest = positive_integer("longest", longest)
        one_of("pooling", pooling, tuple(GATES))
        one_of("cell", cell, CELLS)
        rate("dropout", dropout)  # Keras's Dropout would also take 1
        rate("zoneout", zoneout)
        self._config: dict[str, Any] = {
            "vocab_size": vocab_size, "emb_dim": emb_dim, "units": units,
            "layers": layers, "first_window": first_window, "window": window,
            "pooling": pooling, "zoneout": zoneout, "dropout": dropout,
            "cell": cell, "seed": seed, "vocabulary": vocabulary, "longest": longest,
        }  # fmt: skip
        self.cell = cell
        self.longest = longest
        seeds = iter(range(4 * layers + 2) if seed is not None else ())

        def next_seed() -> int | None:
            return None if seed is None else seed + next(seeds)

        def dropouts(side: str) -> list[keras.layers.Dropout]:
            return [
                keras.layers.Dropout(
                    dropout,
                    seed=next_seed(),
                    name=f"{side}_dropout_{n}",
                    dtype=self.dtype_policy,
                )
                for n in range(layers + 1)
            ]

        def recurrent(kind: type, n: int, side: str, **options: Any) -> Any:
            options |= {"return_sequences": True, "return_state": True}
            return kind(units, name=f"{side}_{n}", dtype=self.dtype_policy, **options)

        def embedding(side: str) -> keras.layers.Embedding:
            # In mixed precision too: a gradient by it is a sum over the characters of a
            # batch, which stops growing in bfloat16.
            return keras.layers.Embedding(
                vocab_size, emb_dim, name=f"{side}_embedding", dtype=self.variable_dtype
            )

        self.source_embedding = embedding("source")
        self.target_embedding = embedding("target")
        self.encoder_dropouts = dropouts("encoder")
        self.decoder_dropouts = dropouts("decoder")
        self.encoder: list[Any] = []
        self.decoder: list[Any] = []
        for n in range(layers):
            if cell == "lstm":
                self.encoder.append(recurrent(keras.layers.LSTM, n, "encoder"))
                self.decoder.append(recurrent(keras.layers.LSTM, n, "decoder"))
                continue
            encoder_window = window if n else first_window
            self.encoder.append(
                recurrent(
                    QRNN,
                    n,
                    "encoder",
                    window=encoder_window,
                    pooling=pooling,
                    zoneout=zoneout,
                    seed=next_seed(),
                    padding="same",
                )
            )
            options = {"window": window, "zoneout": zoneout, "seed": next_seed()}
            if n < layers - 1:
                layer = recurrent(QRNN, n, "decoder", pooling=pooling, **options)
            else:
                layer = recurrent(AttentionQRNN, n, "decoder", **options)
            self.decoder.append(layer)

        def dense(name: str, size: int) -> keras.layers.Dense:
            return keras.layers.Dense(
                size, use_bias=False, name=name, dtype=self.dtype_policy
            )

        self.attention: keras.layers.Attention = None
        if cell == "lstm":
            self.attention = keras.layers.Attention(
                name="attention", dtype=self.dtype_policy
            )
            self.attended_kernel = dense("attended_kernel", units)
            self.state_kernel = dense("state_kernel", units)
        # The loss applies the softmax: it needs the softmax's logarithm in float32.
        self.logits = dense("logits", vocab_size)
        self.perplexity = Perplexity()

    def build(self, inputs_shape: Any = None) -> None:
        units, embedded = self._config["units"], self._config["emb_dim"]
        tokens: Shape = (None, None)
        sequences: Shape = (*tokens, units)
        for embedding in (self.source_embedding, self.target_embedding):
            embedding.build(tokens)
        for n, (encoder, decoder) in enumerate(
            zip(self.encoder, self.decoder, strict=True)
        ):
            shape = sequences if n else (*tokens, embedded)
            encoder.build(shape)
            if self.cell == "lstm":
                decoder.build(shape)
            elif n < len(self.decoder) - 1:
                decoder.build(shape, context_shape=(None, units))
            else:
                decoder.build(
                    shape,
                    encoder_outputs_shape=sequences,
                    context_shape=(None, units),
                )
        if self.attention is not None:
            self.attention.build([sequences, sequences])
            self.attended_kernel.build(sequences)
            self.state_kernel.build(sequences)
        self.logits.build(sequences)
        self.logits_bias = self.add_weight(
            shape=(self._config["vocab_size"],),
            name="logits_bias",
            initializer="zeros",
            autocast=False,
        )
        self.built = True

    def encode(
        self, source: Tensor, training: bool = False
    ) -> tuple[dict[str, Any], list[list[Tensor]]]:
        """Reads the source.

        Args:
            source: int tensor of shape `(batch, source time)`: see "Call arguments".
            training: whether dropout and zoneout act.

        Returns:
            What all decoder steps read: `outputs` of the last encoder layer,
            `(batch, source time, units)`, their boolean `mask`,
            `(batch, source time)`, and `contexts`, the last output of each encoder
            layer, `(batch, units)`. Then the first states of each decoder layer.
        """
        mask = ops.not_equal(source, PAD)
        x = ops.cast(self.source_embedding(source), self.compute_dtype)
        x = self.encoder_dropouts[0](x, training=training)
        contexts, states = [], []
        # What stands behind a sentence is zero, as if the sequence ended there. So the
        # QRNNs need no mask, which would cost time.
        is_valid = ops.cast(mask[:, :, None], self.compute_dtype)
        last = ops.sum(ops.cast(mask, "int32"), axis=1)[:, None] - 1
        last = last % ops.shape(source)[1]  # where all is padding, the last step
        layers = zip(self.encoder, self.decoder, self.encoder_dropouts[1:], strict=True)
        for layer, decoder, dropout in layers:
            if self.cell == "lstm":
                x, *state = layer(x, mask=mask, training=training)
                states.append(state)
            else:
                shape = (*source.shape, x.shape[-1])
                x, _ = layer(x * is_valid, training=training)
                contexts.append(steps_at(last, x)[:, 0])
                _, *state_shapes = decoder.compute_output_shape(shape)
                states.append(
                    [
                        ops.zeros((ops.shape(x)[0], *each[1:]), self.variable_dtype)
                        for each in state_shapes
                    ]
                )
            x = dropout(x, training=training)
        return {"outputs": x, "mask": mask, "contexts": contexts}, states

    def decode(
        self,
        tokens: Tensor,
        states: list[list[Tensor]],
        memory: dict[str, Any],
        training: bool = False,
    ) -> tuple[Tensor, list[list[Tensor]], Tensor]:
        """Reads the translation so far. Pieces of it give what the whole gives.

        Args:
            tokens: int tensor of shape `(batch, time)`.
            states: those before the first token, as `encode` or `decode` returns them.
            memory: as `encode` returns it.
            training: whether dropout and zoneout act.

        Returns:
            The last layer's output after dropout, `(batch, time, units)`; the states
            after the last token; the attention, `(batch, time, source time)`.
        """
        x = ops.cast(self.target_embedding(tokens), self.compute_dtype)
        x = self.decoder_dropouts[0](x, training=training)
        new_states = []
        last = len(self.decoder) - 1
        for n, layer in enumerate(self.decoder):
            options: dict[str, Any] = {"initial_state": states[n], "training": training}
            if self.cell == "qrnn":
                options["context"] = memory["contexts"][n]
                if n == last:
                    options["encoder_outputs"] = memory["outputs"]
                    options["encoder_mask"] = memory["mask"]
                    options["return_attention_scores"] = True
            x, *state = layer(x, **options)
            if n == last:
                x, attention, state = self._attend(x, state, memory)
            new_states.append(state)
            x = self.decoder_dropouts[n + 1](x, training=training)
        return x, new_states, attention

    def _attend(
        self, outputs: Tensor, others: list[Tensor], memory: dict[str, Any]
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The outputs, the attention and the states of the last decoder layer.

        Args:
            outputs: what the layer returned first.
            others: what it returned after that.
            memory: as `encode` returns it.
        """
        if self.cell == "qrnn":  # the layer attends
            attention, *states = others
            return outputs, attention, states
        attended, attention = self.attention(
            [outputs, memory["outputs"]],
            mask=[None, memory["mask"]],
            return_attention_scores=True,
        )
        both = self.attended_kernel(attended) + self.state_kernel(outputs)
        return ops.tanh(both), attention, others

    def softmax_logits(self, hidden: Tensor) -> Tensor:
        """The logits of what `decode` returns, `(batch, time, vocab_size)`."""
        # As in `LanguageModel`: matrices have two axes, and the bias is float32.
        rows = ops.reshape(hidden, (-1, hidden.shape[-1]))
        logits = ops.cast(self.logits(rows), self.logits_bias.dtype) + self.logits_bias
        return ops.reshape(logits, (*ops.shape(hidden)[:2], logits.shape[-1]))

    def call(self, inputs: tuple[Tensor, Tensor], training: bool = False) -> Tensor:
        source, tokens = inputs
        memory, states = self.encode(source, training)
        hidden, *_ = self.decode(tokens, states, memory, training)
        return self.softmax_logits(hidden)

    def step(
        self, tokens: Tensor, states: list[list[Tensor]], memory: dict[str, Any]
    ) -> tuple[Tensor, list[list[Tensor]]]:
        """Predicts the next character: a `Step` of `keras_qrnn.models.beam_search`.

        Args:
            tokens: the last characters, int tensor of shape `(batch,)`.
            states: as in `decode`.
            memory: as in `decode`.

        Returns:
            The log-probabilities of the next character, `(batch, vocab_size)`, and the
            new states.
        """
        hidden, states, _ = self.decode(tokens[:, None], states, memory)
        return ops.log_softmax(self.softmax_logits(hidden)[:, 0], axis=-1), states

    def compile(
        self, optimizer: str | keras.optimizers.Optimizer = "adam", **kwargs: Any
    ) -> None:
        # `compute_loss` computes the loss. Keras reports it only if a loss is set here.
        super().compile(optimizer, loss="sparse_categorical_crossentropy", **kwargs)

    def compute_loss(
        self,
        x: Any = None,
        y: Tensor | None = None,
        y_pred: Tensor | None = None,
        sample_weight: Tensor | None = None,
        training: bool = True,
    ) -> Tensor:
        cross_entropy = token_cross_entropy(y_pred, y)
        if sample_weight is None:
            sample_weight = ops.ones_like(cross_entropy)
        weights = ops.cast(sample_weight, "float32")
        total, count = ops.sum(cross_entropy * weights), ops.sum(weights)
        self.perplexity.update_state(ops.stop_gradient(total), count)
        others = map(part_of_mean, self.losses)
        return sum(others, part_of_weighted_mean(cross_entropy, weights))

    def compute_metrics(
        self, x: Any, y: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        return self.get_metrics_result()  # `compute_loss` has updated them
