"""The sentiment classifier: embedding, recurrent layers, one logit."""

from collections.abc import Iterable, Sequence
from typing import Any

import keras
from keras import ops

from keras_qrnn._checks import boolean, for_each_layer, one_of, positive_integer, rate
from keras_qrnn._types import Shape, Tensor
from keras_qrnn.layers import EmbeddingDropout, QRNNStack
from keras_qrnn.layers._masks import arange, steps_at
from keras_qrnn.losses import part_of_mean, part_of_weighted_mean
from keras_qrnn.models._task_model import TaskModel, copy_weights
from keras_qrnn.ops import equations, linear_scan
from keras_qrnn.ops.equations import Gates

CELLS = ("qrnn", "lstm")
ENCODINGS = ("last", "last_mean_max")


@keras.saving.register_keras_serializable(package="keras_qrnn")
class SentimentModel(TaskModel):
    """The classifier of arXiv 1611.01576, section 3.1, for two classes.

    It has an embedding, recurrent layers and a logit. With `dense=True` each recurrent
    layer reads its predecessor's input too (section 2.1). The last layer's output after
    the last word encodes the review. Dropout follows the embedding, each recurrent
    layer and the encoding; it drops the same features at all steps.

    The loss of a batch is the mean cross-entropy in nats, weighted by the sample
    weights, plus `l2` times the sum of the squares of all kernels. The embedding and
    the biases are not regularized. The metric `cross_entropy` has no such part.

    Args:
        vocab_size: Positive integer, number of words.
        emb_dim: Positive integer, size of the embedding.
        units: Positive integer, size of each recurrent layer; or a list with one
            integer for each layer.
        layers: Positive integer, number of recurrent layers.
        window: Positive integer, window of the QRNN layers in steps; or a list with
            one integer for each layer.
        dense: Whether the layers are densely connected.
        pooling: Pooling of the QRNN layers: `"f"`, `"fo"` or `"ifo"`.
        zoneout: Zoneout rate of the QRNN layers, in [0, 1).
        dropout: Dropout rate, in [0, 1).
        embedding_dropout: Probability of dropping a word, in [0, 1). A dropped word is
            dropped everywhere in the batch.
        kernel_dropout: Fraction of the elements of each QRNN layer's kernel that are
            dropped in training, in [0, 1).
        l2: Number of at least 0, the weight of the squares of the kernels.
        cell: `"qrnn"` or `"lstm"`.
        encoding: `"last"`: the last layer's last output. `"last_mean_max"`: that, and
            the mean and the maximum of its outputs over time (arXiv 1801.06146, section
            3.3).
        embedding_scale: The embedding's initial values are uniform between
            `-embedding_scale` and `embedding_scale`.
        train_embedding: Whether the embedding is trained.
        seed: Seed of dropout and zoneout.
        vocabulary: Fingerprint of the vocabulary, saved with the model.
        max_len: How long reviews were in the training: only their last `max_len` words.
            None: all words. The model itself cuts nothing. `SentimentClassifier` does.
        cased: Whether reviews kept their capitals in the training.
            `SentimentClassifier` treats texts alike.

    Call arguments:
        tokens: int tensor of shape `(batch, time)`: ids of words plus 1. 0 is padding;
            padded steps are masked.
        training: Boolean, whether dropout and zoneout act.

    Output shape:
        `(batch, 1)`: the logit of class 1. It is float32 in mixed precision.

    Raises:
        ValueError: if an argument is out of its range, or if an LSTM gets a
            `kernel_dropout` or a `zoneout`.
    """

    def __init__(
        self,
        vocab_size: int,
        emb_dim: int = 300,
        units: int | Sequence[int] = 256,
        layers: int = 4,
        window: int | Sequence[int] = 2,
        dense: bool = True,
        pooling: str = "fo",
        zoneout: float = 0.0,
        dropout: float = 0.3,
        embedding_dropout: float = 0.0,
        kernel_dropout: float = 0.0,
        l2: float = 4e-6,
        cell: str = "qrnn",
        encoding: str = "last",
        embedding_scale: float = 0.1,
        train_embedding: bool = True,
        seed: int | None = None,
        vocabulary: str | None = None,
        max_len: int | None = None,
        cased: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        one_of("cell", cell, CELLS)
        one_of("encoding", encoding, ENCODINGS)
        vocab_size = positive_integer("vocab_size", vocab_size)
        emb_dim = positive_integer("emb_dim", emb_dim)
        layers = positive_integer("layers", layers)
        sizes = for_each_layer("units", units, layers)
        windows = for_each_layer("window", window, layers)
        rates = {"dropout": dropout, "embedding_dropout": embedding_dropout}
        only_qrnn = {"zoneout": zoneout, "kernel_dropout": kernel_dropout}
        for name, value in (rates | only_qrnn).items():
            if rate(name, value) and name in only_qrnn and cell != "qrnn":
                raise ValueError(
                    f"Argument `{name}` goes with cell='qrnn'. "
                    f"Received: {name}={value!r}, cell={cell!r}"
                )
        if max_len is not None:
            max_len = positive_integer("max_len", max_len)
        dense = boolean("dense", dense)
        train_embedding = boolean("train_embedding", train_embedding)
        cased = boolean("cased", cased)
        if not 0 <= l2 < float("inf"):
            raise ValueError(
                f"Argument `l2` must be 0 or a positive number. Received: l2={l2!r}"
            )
        self._config: dict[str, Any] = {
            "vocab_size": vocab_size, "emb_dim": emb_dim,
            "units": units if isinstance(units, int) else list(sizes),
            "layers": layers, "window": window if isinstance(window, int) else windows,
            "dense": dense, "pooling": pooling, "zoneout": zoneout,
            "dropout": dropout, "embedding_dropout": embedding_dropout,
            "kernel_dropout": kernel_dropout, "l2": l2, "cell": cell,
            "encoding": encoding, "embedding_scale": embedding_scale,
            "train_embedding": train_embedding, "seed": seed,
            "vocabulary": vocabulary, "max_len": max_len, "cased": cased,
        }  # fmt: skip
        self.cell = cell
        self.dense = dense
        self.encoding = encoding
        self.max_len = max_len
        self.cased = cased

        def seed_of(n: int) -> int | None:
            return None if seed is None else seed + n

        def regularizer() -> keras.regularizers.Regularizer | None:
            return keras.regularizers.L2(l2) if l2 else None

        # As in `LanguageModel`, the embedding computes in float32 in mixed precision:
        # its gradient is a sum over the tokens of a batch.
        self.embedding = keras.layers.Embedding(
            vocab_size + 1,  # row 0 is padding
            emb_dim,
            embeddings_initializer=keras.initializers.RandomUniform(
                -embedding_scale, embedding_scale
            ),
            name="embedding",
            dtype=self.variable_dtype,
            trainable=train_embedding,
        )
        self.embedding_dropout: EmbeddingDropout | None = None
        if embedding_dropout:
            self.embedding_dropout = EmbeddingDropout(
                vocab_size + 1, embedding_dropout, seed_of(0),
                name="embedding_dropout", dtype=self.dtype_policy,
            )  # fmt: skip
        self.dropouts = [
            keras.layers.SpatialDropout1D(
                dropout, seed=seed_of(1 + n), name=f"dropout_{n}",
                dtype=self.dtype_policy,
            )
            for n in range(1 if cell == "qrnn" else layers)
        ]  # fmt: skip
        self.last_dropout = keras.layers.Dropout(
            dropout, seed=seed_of(1 + layers), name="last_dropout",
            dtype=self.dtype_policy,
        )  # fmt: skip
        sequences = {"return_sequences": encoding != "last"}
        sequences["dtype"] = self.dtype_policy
        self.stack: QRNNStack | None = None
        self.lstms: list[keras.layers.LSTM] = []
        if cell == "qrnn":
            self.stack = QRNNStack(
                sizes, layers, window, dense=dense, dropout=dropout, pooling=pooling,
                zoneout=zoneout, kernel_dropout=kernel_dropout,
                kernel_regularizer=regularizer(), seed=seed_of(2 + layers),
                name="stack", **sequences,
            )  # fmt: skip
        else:
            for n, size in enumerate(sizes):
                sequences["return_sequences"] = n < layers - 1 or encoding != "last"
                lstm = keras.layers.LSTM(
                    size, kernel_regularizer=regularizer(),
                    recurrent_regularizer=regularizer(), name=f"lstm_{n}", **sequences,
                )  # fmt: skip
                self.lstms.append(lstm)
        self.logit = keras.layers.Dense(
            1, kernel_regularizer=regularizer(), name="logit",
            dtype=self.variable_dtype,
        )  # fmt: skip
        self._sizes = sizes
        self.cross_entropy = keras.metrics.Mean(name="cross_entropy")
        self.accuracy = keras.metrics.BinaryAccuracy(name="accuracy", threshold=0.0)

    @property
    def recurrent(self) -> list[keras.layers.Layer]:
        """The recurrent layers, in their order."""
        return self.lstms if self.stack is None else self.stack.qrnns

    def build(self, tokens_shape: Shape | None = None) -> None:
        shape: Shape = (None, None)
        self.embedding.build(shape)
        shape = (*shape, self._config["emb_dim"])
        if self.stack is not None:
            self.stack.build(shape)
        for lstm in self.lstms:
            lstm.build(shape)
            before = shape[2] if self.dense else 0
            shape = (*shape[:2], before + lstm.units)
        width = self._sizes[-1] * (1 if self.encoding == "last" else 3)
        self.logit.build((None, width))
        self.built = True

    def call(self, tokens: Tensor, training: bool = False) -> Tensor:
        mask = ops.not_equal(tokens, 0)
        encoding = self.encode(self._embed(tokens, training), mask, training)
        encoding = self.last_dropout(encoding, training=training)
        return self.logit(ops.cast(encoding, self.variable_dtype))

    def encode(self, embedded: Tensor, mask: Tensor, training: bool = False) -> Tensor:
        """The encodings of embedded reviews, which the classifier takes.

        Args:
            embedded: tensor of shape `(batch, time, emb_dim)`.
            mask: bool tensor of shape `(batch, time)`.
            training: whether zoneout and the dropouts between layers act.

        Returns:
            Tensor of shape `(batch, units of the last layer)`, or three times as wide.
        """
        outputs = embedded
        if self.stack is not None:
            outputs = self.stack(embedded, mask=mask, training=training)
        for lstm, inputs in self._through_lstms(embedded, mask, training):
            outputs = lstm(inputs, mask=mask, training=training)
        return self._encode(outputs, mask)

    def _embed(self, tokens: Tensor, training: bool = False) -> Tensor:
        x = ops.cast(self.embedding(tokens), self.compute_dtype)
        if self.embedding_dropout is not None:
            x = self.embedding_dropout(x, tokens, training=training)
        return self.dropouts[0](x, training=training)

    def _through_lstms(
        self, inputs: Tensor, mask: Tensor, training: bool = False
    ) -> Iterable[tuple[keras.layers.Layer, Tensor]]:
        """Each LSTM with its input. All but the last are called."""
        for n, lstm in enumerate(self.lstms):
            yield lstm, inputs
            if lstm is not self.lstms[-1]:
                outputs = lstm(inputs, mask=mask, training=training)
                if self.dense:
                    outputs = ops.concatenate([inputs, outputs], axis=-1)
                inputs = self.dropouts[n + 1](outputs, training=training)

    def _encode(self, outputs: Tensor, mask: Tensor) -> Tensor:
        """The encoding of a review, from the outputs of the last layer."""
        if self.encoding == "last":
            return outputs
        # Behind a review cuDNN's LSTM gives zeros. Other layers repeat the last output.
        steps = arange(outputs.shape[1] or ops.shape(outputs)[1])
        index = ops.max(ops.where(mask, steps, 0), axis=1)[:, None]
        last = steps_at(index, outputs)[:, 0]
        is_word = mask[:, :, None]
        outputs = ops.cast(outputs, self.variable_dtype)
        total = ops.sum(ops.where(is_word, outputs, 0.0), axis=1)
        mean = total / ops.sum(ops.cast(is_word, outputs.dtype), axis=1)
        most = ops.max(ops.where(is_word, outputs, -1e30), axis=1)
        parts = [last, ops.cast(mean, last.dtype), ops.cast(most, last.dtype)]
        return ops.concatenate(parts, axis=-1)

    def states(self, tokens: Tensor) -> Tensor:
        """The last layer's state after each word, for a look into a trained model.

        Args:
            tokens: int tensor of shape `(batch, time)` without padding.

        Returns:
            Tensor of shape `(batch, time, units)`: the cell states of a QRNN, the
            outputs of an LSTM.
        """
        tokens = ops.convert_to_tensor(tokens)
        outputs = self._embed(tokens)
        if self.stack is None:
            for lstm, inputs in self._through_lstms(outputs, ops.not_equal(tokens, 0)):
                last, outputs = lstm, inputs
            kind = {"return_sequences": True, "dtype": self.dtype_policy}
            twin = keras.layers.LSTM(last.units, **kind)
            twin.build(outputs.shape)
            copy_weights(twin, last.weights)
            return twin(outputs)
        *earlier, last = self.stack.qrnns
        for layer in earlier:
            outputs = self.stack._next(outputs, layer(outputs), valid=None)
        z, f, *others = (
            ops.cast(gate, "float32") for gate in last.compute_gates(outputs)
        )
        gates = Gates(z, 1.0 - f, *others)
        return linear_scan(*equations.decay_and_inputs(gates, 1.0 - last.zoneout))

    def compile(
        self, optimizer: str | keras.optimizers.Optimizer = "rmsprop", **kwargs: Any
    ) -> None:
        # `compute_loss` computes the loss. Keras reports it only if a loss is set here.
        super().compile(optimizer, loss="binary_crossentropy", **kwargs)

    def compute_loss(
        self,
        x: Tensor | None = None,
        y: Tensor | None = None,
        y_pred: Tensor | None = None,
        sample_weight: Tensor | None = None,
        training: bool = True,
    ) -> Tensor:
        cross_entropy = _cross_entropy(y, y_pred)
        others = map(part_of_mean, self.losses)
        return sum(others, part_of_weighted_mean(cross_entropy, sample_weight))

    def compute_metrics(
        self, x: Tensor, y: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        # Keras would make a metric of `compile` with the first batch. A checkpoint that
        # is loaded before holds its variables already.
        self.cross_entropy.update_state(_cross_entropy(y, y_pred), sample_weight)
        self.accuracy.update_state(y, y_pred, sample_weight)
        return self.get_metrics_result()


def _cross_entropy(labels: Tensor, logits: Tensor) -> Tensor:
    """The cross-entropy of each review, in nats, float32 of shape `(batch,)`."""
    return keras.losses.binary_crossentropy(
        labels, ops.cast(logits, "float32"), from_logits=True
    )
