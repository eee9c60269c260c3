"""The word-level language model of arXiv 1611.01576, section 3.2."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_qrnn._checks import (
    boolean,
    for_each_layer,
    integer,
    positive_integer,
    rate,
)
from keras_qrnn._types import Shape, Tensor
from keras_qrnn.layers import QRNN, EmbeddingDropout, StatefulLSTM
from keras_qrnn.losses import (
    part_of_mean,
    sampled_token_cross_entropy,
    token_cross_entropy,
)
from keras_qrnn.metrics import Perplexity
from keras_qrnn.models._task_model import TaskModel, copy_weights
from keras_qrnn.models._word_sample import WordSample

CELLS = ("qrnn", "lstm", "unrolled_lstm")


@keras.saving.register_keras_serializable(package="keras_qrnn")
class LanguageModel(TaskModel):
    """The word-level language model of arXiv 1611.01576, section 3.2.

    It has an embedding, recurrent layers and logits over the vocabulary. Dropout
    follows the embedding and each recurrent layer. The recurrent layers carry their
    states from batch to batch. The further regularization is that of arXiv 1708.02182,
    sections 2 and 4.2 to 4.6: `tied`, `locked_dropout`, `embedding_dropout`,
    `hidden_dropout`, `kernel_dropout` and the two regularizations of the activations.

    The loss is the cross-entropy in nats, summed over the steps of a batch and averaged
    over its rows. The paper's learning rate of 1 and clip of 10 belong to this scale.
    The metric `perplexity` is per token; tokens of weight 0 do not count.

    In training the regularizations of the activations are added to the loss. `h[t]` is
    the last layer's output at step t, and `d[t]` is the same after dropout. Both have
    `units` features. The sums are over the steps, rows and features of a batch, each
    step times its weight:

        activation_regularization * sum(d[t]^2) / (rows * units)
        temporal_regularization * sum((h[t] - h[t - 1])^2) / (rows * units)

    The loss of arXiv 1708.02182 is a mean over tokens. The loss here is larger by a
    factor, the steps of a batch. So are the two sums. So the two coefficients have the
    values of alpha and beta in that paper.

    Args:
        vocab_size: Positive integer, number of words.
        emb_dim: Positive integer, size of the embedding.
        units: Positive integer, size of each recurrent layer.
        layers: Positive integer, number of recurrent layers.
        batch_size: Positive integer, number of rows of a batch and of the kept
            states. Under `tf.distribute` and in `keras_qrnn.training.ddp`, the rows
            of one replica's part of a batch.
        window: Positive integer, window of the QRNN layers in steps; or a list with
            one integer for each layer.
        pooling: Pooling of the QRNN layers: `"f"`, `"fo"` or `"ifo"`.
        zoneout: Zoneout rate of the QRNN layers, in [0, 1).
        dropout: Dropout rate after the embedding and each recurrent layer, in [0, 1).
        cell: `"qrnn"`, `"lstm"` or `"unrolled_lstm"` (Keras's LSTM with
            `unroll=True`).
        embedding_scale: The embedding's initial values are uniform between
            `-embedding_scale` and `embedding_scale`.
        tied: Whether the embedding's transpose is the kernel of the softmax. The last
            layer then has `emb_dim` units.
        locked_dropout: Whether dropout drops the same features at all steps of a
            batch (variational dropout, arXiv 1512.05287).
        embedding_dropout: Probability of dropping a word, in [0, 1). A dropped word is
            dropped everywhere in the batch.
        hidden_dropout: Dropout rate between recurrent layers, in [0, 1). Defaults to
            `dropout`.
        seed: Seed of dropout and zoneout.
        kernel_dropout: Fraction of the elements of each QRNN layer's kernel that are
            dropped in training (weight drop, section 2 of arXiv 1708.02182).
        activation_regularization: Weight of the squares of the last layer's output
            after dropout: alpha of section 4.6 of arXiv 1708.02182. 0 turns it off.
        temporal_regularization: Weight of the squares of the last layer's change from
            step to step: beta of section 4.6 of arXiv 1708.02182. 0 turns it off.
        sampled_words: Number of words over which the softmax of training goes, beside
            the target, or 0 for all. With a large vocabulary a training step is faster
            so. The loss of training is then an estimate, too low on average (Jean et
            al., arXiv 1412.2007). Each step draws other words, the most frequent ones
            always. So the ids must be in the order of the words' frequencies, as those
            of `Vocabulary.build` are. Evaluation uses all words.
        vocabulary: Fingerprint of the vocabulary, saved with the model. It tells the
            model's own vocabulary from others when a run is loaded.

    Call arguments:
        tokens: int tensor of shape `(batch_size, time)`.
        training: Boolean, whether dropout and zoneout act.

    Output shape:
        `(batch_size, time, vocab_size)`: the logits. They are float32 in mixed
        precision. With `sampled_words` and `training=True` it is `(batch_size, time,
        units of the last layer)`: the last layer's output after dropout. The loss then
        computes the logits that it needs.

    Raises:
        ValueError: if an argument is out of its range, if `window` has not one integer
            for each layer, or if an LSTM gets a `kernel_dropout`.
    """

    def __init__(
        self,
        vocab_size: int,
        emb_dim: int = 650,
        units: int = 640,
        layers: int = 2,
        batch_size: int = 20,
        window: int | Sequence[int] = 2,
        pooling: str = "fo",
        zoneout: float = 0.1,
        dropout: float = 0.5,
        cell: str = "qrnn",
        embedding_scale: float = 1.0,
        tied: bool = False,
        locked_dropout: bool = False,
        embedding_dropout: float = 0.0,
        hidden_dropout: float | None = None,
        seed: int | None = None,
        kernel_dropout: float = 0.0,
        activation_regularization: float = 0.0,
        temporal_regularization: float = 0.0,
        vocabulary: str | None = None,
        sampled_words: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if cell not in CELLS:
            raise ValueError(
                f"Argument `cell` must be one of {', '.join(map(repr, CELLS))}. "
                f"Received: cell={cell!r}"
            )
        vocab_size = positive_integer("vocab_size", vocab_size)
        emb_dim = positive_integer("emb_dim", emb_dim)
        units = positive_integer("units", units)
        layers = positive_integer("layers", layers)
        batch_size = positive_integer("batch_size", batch_size)
        windows = for_each_layer("window", window, layers)
        tied = boolean("tied", tied)
        locked_dropout = boolean("locked_dropout", locked_dropout)
        sampled_words = integer("sampled_words", sampled_words, 0, vocab_size)
        rate("dropout", dropout)  # Keras's Dropout would also take 1
        rate("embedding_dropout", embedding_dropout)
        hidden = dropout if hidden_dropout is None else hidden_dropout
        rate("hidden_dropout", hidden)
        if rate("kernel_dropout", kernel_dropout) and cell != "qrnn":
            raise ValueError(
                "Argument `kernel_dropout` goes with cell='qrnn'. "
                f"Received: kernel_dropout={kernel_dropout!r}, cell={cell!r}"
            )
        regularization = {
            "activation_regularization": activation_regularization,
            "temporal_regularization": temporal_regularization,
        }
        for name, strength in regularization.items():
            if not 0 <= strength < float("inf"):
                raise ValueError(
                    f"Argument `{name}` must be 0 or a positive number. "
                    f"Received: {name}={strength!r}"
                )
        self._config: dict[str, Any] = {
            "vocab_size": vocab_size, "emb_dim": emb_dim, "units": units,
            "layers": layers, "batch_size": batch_size,
            "window": window if isinstance(window, int) else windows,
            "pooling": pooling, "zoneout": zoneout, "dropout": dropout, "cell": cell,
            "embedding_scale": embedding_scale, "tied": tied,
            "locked_dropout": locked_dropout, "embedding_dropout": embedding_dropout,
            "hidden_dropout": hidden_dropout, "seed": seed,
            "kernel_dropout": kernel_dropout, **regularization,
            "vocabulary": vocabulary, "sampled_words": sampled_words,
        }  # fmt: skip
        self.batch_size = batch_size
        self.cell = cell
        self.tied = tied
        seeds: list[int | None] = [None] * (2 * layers + 3)
        if seed is not None:
            seeds = [seed + n for n in range(2 * layers + 3)]

        uniform = keras.initializers.RandomUniform(-embedding_scale, embedding_scale)
        # In mixed precision too, the embedding and the softmax's bias compute in
        # float32. Their gradients are sums over the tokens of a batch, 2,100 in the
        # paper. In bfloat16 such a sum stops growing early, and the training diverges.
        # This happened to the embedding on JAX and to a Dense layer's bias on
        # TensorFlow.
        self.embedding = keras.layers.Embedding(
            vocab_size,
            emb_dim,
            embeddings_initializer=uniform,
            name="embedding",
            dtype=self.variable_dtype,
        )
        self.embedding_dropout: EmbeddingDropout | None = None
        if embedding_dropout:
            self.embedding_dropout = EmbeddingDropout(
                vocab_size,
                embedding_dropout,
                seeds[2 * layers + 1],
                name="embedding_dropout",
                dtype=self.dtype_policy,
            )
        # SpatialDropout1D drops a feature at all steps of a row.
        dropout_layer = keras.layers.Dropout
        if locked_dropout:
            dropout_layer = keras.layers.SpatialDropout1D
        rates = [dropout, *[hidden] * (layers - 1), dropout]
        self.dropouts = [
            dropout_layer(
                rates[n], seed=seeds[n], name=f"dropout_{n}", dtype=self.dtype_policy
            )
            for n in range(layers + 1)
        ]
        carried: dict[str, Any] = {"return_sequences": True, "stateful": True}
        carried["dtype"] = self.dtype_policy
        self.recurrent = []
        for n in range(layers):
            size = emb_dim if tied and n == layers - 1 else units
            if cell == "qrnn":
                layer = QRNN(
                    size, windows[n], pooling, zoneout=zoneout,
                    seed=seeds[layers + 1 + n], name=f"qrnn_{n}",
                    kernel_dropout=kernel_dropout, **carried,
                )  # fmt: skip
            else:
                layer = StatefulLSTM(
                    size, unroll=cell == "unrolled_lstm", name=f"lstm_{n}", **carried
                )
            self.recurrent.append(layer)
        # The loss applies the softmax: it needs the softmax's logarithm in float32.
        self.logits: keras.layers.Layer = None
        if not tied:
            self.logits = keras.layers.Dense(
                vocab_size, use_bias=False, name="logits", dtype=self.dtype_policy
            )
        self.word_sample: WordSample | None = None
        if sampled_words:
            self.word_sample = WordSample(
                vocab_size, sampled_words, seeds[-1], name="word_sample"
            )
        self.perplexity = Perplexity()

    def build(self, tokens_shape: Shape | None = None) -> None:
        shape: Shape = (self.batch_size, None)
        self.embedding.build(shape)
        shape = (*shape, self._config["emb_dim"])
        for layer in self.recurrent:
            layer.build(shape)
            shape = (*shape[:2], layer.units)
        if not self.tied:
            self.logits.build(shape)
        self.logits_bias = self.add_weight(
            shape=(self._config["vocab_size"],),
            name="logits_bias",
            initializer="zeros",
            autocast=False,
        )
        self.built = True

    def hidden(self, tokens: Tensor, training: bool = False) -> Tensor:
        """The last layer's output after dropout, which the softmax takes.

        Args:
            tokens: int tensor of shape `(batch_size, time)`.
            training: whether dropout, zoneout and the regularizations act.

        Returns:
            Tensor of shape `(batch_size, time, units of the last layer)`, in the
            compute dtype.
        """
        x = ops.cast(self.embedding(tokens), self.compute_dtype)
        if self.embedding_dropout is not None:
            x = self.embedding_dropout(x, tokens, training=training)
        x = self.dropouts[0](x, training=training)
        for layer, dropout in zip(self.recurrent, self.dropouts[1:], strict=True):
            raw = layer(x, training=training)
            x = dropout(raw, training=training)
        if training:
            self._regularize(raw, x)
        return x

    def _regularize(self, raw: Tensor, dropped: Tensor) -> None:
        """Adds the losses of the last layer's outputs before and after dropout.

        Each has shape `(batch, time)`: `compute_loss` leaves out steps of weight 0.
        """
        alpha = self._config["activation_regularization"]
        beta = self._config["temporal_regularization"]
        scale = 1.0 / (self.batch_size * raw.shape[-1])
        if alpha:
            squares = ops.square(ops.cast(dropped, "float32"))
            self.add_loss(alpha * scale * ops.sum(squares, axis=-1))
        if beta:
            raw = ops.cast(raw, "float32")
            squares = ops.sum(ops.square(raw[:, 1:] - raw[:, :-1]), axis=-1)
            self.add_loss(beta * scale * ops.pad(squares, ((0, 0), (1, 0))))

    def softmax_logits(self, hidden: Tensor) -> Tensor:
        """The logits of what `hidden` returns, `(batch_size, time, vocab_size)`."""
        # The matrices have two axes. With three axes, XLA on a CPU would copy the
        # gradient by the logits into another memory order. That gradient is the largest
        # tensor of a training step.
        matrix = ops.reshape(hidden, (-1, hidden.shape[-1]))
        if self.tied:
            kernel = ops.cast(self.embedding.embeddings, self.compute_dtype)
            logits = ops.matmul(matrix, ops.transpose(kernel))
        else:
            logits = self.logits(matrix)
        logits = ops.cast(logits, self.logits_bias.dtype) + self.logits_bias
        return ops.reshape(logits, (*ops.shape(hidden)[:2], logits.shape[-1]))

    def sampled_cross_entropy(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """The estimated cross-entropy of each token: see `sampled_words`.

        Args:
            hidden: what `hidden` returns.
            targets: int tensor of shape `(batch_size, time)`. The result for an id of
                no word is NaN.

        Returns:
            A float32 tensor of shape `(batch_size, time)`, in nats.

        Raises:
            ValueError: if the model has `sampled_words=0`.
        """
        if self.word_sample is None:
            raise ValueError(
                "`sampled_cross_entropy` needs a model whose `sampled_words` is a "
                "positive integer. Received: sampled_words=0"
            )
        matrix = ops.reshape(hidden, (-1, hidden.shape[-1]))
        flat = ops.cast(ops.reshape(targets, (-1,)), "int32")
        is_word = ops.logical_and(flat >= 0, flat < self._config["vocab_size"])
        flat = ops.where(is_word, flat, 0)
        sample, log_probabilities = self.word_sample.draw()
        # One gather: the gradient of each is as large as the kernel.
        words = ops.concatenate([sample, flat])
        if self.tied:
            kernel = ops.take(self.embedding.embeddings, words, axis=0)
        else:
            kernel = ops.transpose(ops.take(self.logits.kernel, words, axis=1))
        kernel = ops.cast(kernel, self.compute_dtype)
        bias = ops.take(self.logits_bias, words, axis=0)
        size = self.word_sample.size
        sampled = ops.matmul(matrix, ops.transpose(kernel[:size]))
        target = ops.sum(ops.cast(matrix * kernel[size:], bias.dtype), axis=-1)
        cross_entropy = sampled_token_cross_entropy(
            target + bias[size:],
            ops.cast(sampled, bias.dtype) + bias[:size],
            flat,
            sample,
            log_probabilities,
        )
        cross_entropy = ops.where(is_word, cross_entropy, float("nan"))
        return ops.reshape(cross_entropy, ops.shape(targets))

    def call(self, tokens: Tensor, training: bool = False) -> Tensor:
        hidden = self.hidden(tokens, training)
        if training and self.word_sample is not None:
            return hidden
        return self.softmax_logits(hidden)

    def compile(
        self, optimizer: str | keras.optimizers.Optimizer = "sgd", **kwargs: Any
    ) -> None:
        # `compute_loss` computes the loss. Keras reports it only if a loss is set here.
        super().compile(optimizer, loss="sparse_categorical_crossentropy", **kwargs)

    def compute_loss(
        self,
        x: Tensor | None = None,
        y: Tensor | None = None,
        y_pred: Tensor | None = None,
        sample_weight: Tensor | None = None,
        training: bool = True,
    ) -> Tensor:
        if training and self.word_sample is not None:
            cross_entropy = self.sampled_cross_entropy(y_pred, y)
        else:
            cross_entropy = token_cross_entropy(y_pred, y)
        if sample_weight is None:
            sample_weight = ops.ones_like(cross_entropy)
        sample_weight = ops.cast(sample_weight, "float32")
        total = ops.sum(cross_entropy * sample_weight)
        self.perplexity.update_state(ops.stop_gradient(total), ops.sum(sample_weight))
        loss = total / self.batch_size
        for each in self.losses:  # those of `_regularize` are `(batch, time)`
            loss += ops.sum(each * sample_weight) if len(each.shape) == 2 else each
        return part_of_mean(loss)

    def compute_metrics(
        self, x: Tensor, y: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        return self.get_metrics_result()  # `compute_loss` has updated them

    def reset_state(self) -> None:
        """Sets the kept state of all layers to zeros."""
        for layer in self.recurrent:
            layer.reset_state()

    def with_batch_size(self, batch_size: int) -> "LanguageModel":
        """A copy of this model for batches of another size. Its state is zero.

        Args:
            batch_size: Positive integer, number of rows of a batch.

        Returns:
            A built model with copied weights. `copy_weights` copies them again later.
        """
        return self._copy_with(batch_size=batch_size)

    def with_all_words(self) -> "LanguageModel":
        """A copy of this model with `sampled_words=0`. Its state is zero."""
        return self._copy_with(sampled_words=0)

    def serving_model(
        self, batch_size: int | None = None, time: int | None = None
    ) -> keras.Model:
        """A functional model for serving: its states are inputs and outputs.

        It holds no state, so one model serves many texts at a time, each with states of
        its own. It consists of `Embedding`, `QRNN` or `LSTM`, and `Dense` layers, and
        can be saved, exported and quantized. A text begins with states of zeros::

            states = [np.zeros((rows, *each.shape[1:]), each.dtype)
                      for each in server.inputs[1:]]
            logits, *states = server.predict([tokens, *states])

        Args:
            batch_size: number of rows of a batch, or None for any.
            time: number of steps of a call, or None for any.

        Returns:
            A `keras.Model` with copies of the weights: training this model further does
            not change it. Inputs: int32 tokens of shape `(batch, time)`, then the
            states of each recurrent layer, in the order of `layer.states`. Outputs: the
            logits `(batch, time, vocab_size)`, then the states after the last step.
            Logits and states have the dtype of the weights.
        """
        if not self.built:
            self.build()
        tokens = keras.Input((time,), batch_size, dtype="int32", name="tokens")
        embedding = keras.layers.Embedding.from_config(self.embedding.get_config())
        x = embedding(tokens)
        copy_weights(embedding, self.embedding.weights)
        inputs, outputs = [tokens], []
        for layer in self.recurrent:
            names = ("cell", "window") if self.cell == "qrnn" else ("h", "c")
            states = [
                keras.Input(
                    state.shape[1:], batch_size, dtype=state.dtype,
                    name=f"{layer.name}_{name}",
                )
                for name, state in zip(names, layer.states or [], strict=False)
            ]  # fmt: skip
            twin = _without_state(layer)
            x, *new_states = twin(x, initial_state=states)
            copy_weights(twin, layer.weights)
            inputs += states
            outputs += new_states
        dense = keras.layers.Dense(
            self._config["vocab_size"], name="logits", dtype=self.variable_dtype
        )
        outputs.insert(0, dense(x))
        if self.tied:
            kernel = ops.transpose(self.embedding.embeddings)
        else:
            kernel = self.logits.kernel
        copy_weights(dense, [kernel, self.logits_bias])
        return keras.Model(inputs, outputs, name=f"{self.name}_server")


def _without_state(layer: keras.layers.Layer) -> keras.layers.Layer:
    """A recurrent layer that keeps no state, gives its last states and drops nothing.

    Its weights are new ones.
    """
    config = layer.get_config() | {"stateful": False, "return_state": True}
    if isinstance(layer, QRNN):
        return QRNN.from_config(config | {"kernel_dropout": 0.0})
    return keras.layers.LSTM.from_config(config | {"unroll": False})
