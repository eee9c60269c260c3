"""Training of a sentiment classifier: its options, its model and its data."""

import functools
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_qrnn._checks import integer
from keras_qrnn.data import Vocabulary, fingerprint
from keras_qrnn.data.imdb import Labelled, Reviews
from keras_qrnn.data.review_batches import ReviewBatches, encode_reviews
from keras_qrnn.data.vocabulary import UNK
from keras_qrnn.data.word_vectors import read_word_vectors
from keras_qrnn.models.language_model import LanguageModel
from keras_qrnn.models.sentiment import CELLS, ENCODINGS, SentimentModel
from keras_qrnn.ops.equations import GATES
from keras_qrnn.training.checkpoint import read_meta
from keras_qrnn.training.evaluation import load_run, weights_to_evaluate
from keras_qrnn.training.experiment import BYTES_OF_A_WEIGHT, Experiment, check_memory
from keras_qrnn.training.language_model import load_trained
from keras_qrnn.training.objective import Objective
from keras_qrnn.training.optimizers import build_optimizer
from keras_qrnn.training.options import (
    MOST,
    RunOptions,
    choice,
    count,
    count_or_zero,
    flag,
    fraction,
    not_negative,
    option,
    path,
    positive,
    redefault,
    refuse_without_qrnn,
    takes_older_names,
    windows,
)
from keras_qrnn.training.plots import Panel, plot_states
from keras_qrnn.training.run_directory import RunDirectory

OBJECTIVE = Objective("val_accuracy", "max")
EMB_DIM = 300  # without word vectors


@takes_older_names
@dataclass(frozen=True)
class SentimentOptions(RunOptions):
    """The recipe of a sentiment classifier; the defaults are those of the paper.

    That is arXiv 1611.01576, section 3.1. The paper does not state the number of
    epochs, the pooling, zoneout and the vocabulary. `SentimentModel` explains the
    options that are its arguments. Others are:

    - `embeddings` is a file of word vectors that the embedding starts from: see
      `read_word_vectors`. `emb_dim` is then their size.
    - `pretrained` is the `save_path` of a finished run of `train_lm.py`. The embedding
      and the recurrent layers start from its weights. Their sizes, and zoneout if no
      other is given, are those of that run. They are not densely connected. An option
      that is given and asks for another size is refused.
    - `layer_rate` multiplies the learning rate of each lower layer: once for the layer
      below the logit, twice for the layer below that, and so on down to the embedding.
    - With `unfreeze_epochs=N` above 0 the logit alone is trained in the first N epochs.
      Every N epochs one more layer is trained, from the last one down to the embedding.

    Raises:
        ValueError: if a value is out of its range.
    """

    cell: str = option("qrnn", "qrnn or lstm", choice(*CELLS))
    epochs: int = redefault("epochs", 10)
    batch_size: int = redefault("batch_size", 24)
    optimizer: str = redefault("optimizer", "rmsprop")
    learning_rate: float = redefault("learning_rate", 0.001)
    learning_rate_decay: float = redefault("learning_rate_decay", 1.0)
    epsilon: float = redefault("epsilon", 1e-8)
    units: int = option(256, "units of each layer", count)
    layers: int = option(4, "number of layers", count)
    window: int = option(2, "window of the convolution", count)
    first_window: int | None = option(
        None, "window of the first layer, if it differs", count, "first_qrnn_k"
    )
    dense: bool = option(True, "densely connected layers", flag)
    emb_dim: int | None = option(
        None, f"size of the embedding; without word vectors {EMB_DIM}", count
    )
    vocab_size: int = option(
        30000,
        "words kept at most, the most frequent",
        lambda name, value: integer(name, value, 3, MOST, "Option"),
    )
    max_len: int | None = option(
        None, "N: keep only the last N words of a review", count
    )
    pooling: str = option("fo", "f, fo or ifo", choice(*GATES))
    zoneout: float | None = option(
        None, "zoneout rate; without a language model 0", fraction
    )
    dropout: float = option(0.3, "dropout rate", fraction)
    embedding_dropout: float = option(0.0, "rate at which words are dropped", fraction)
    kernel_dropout: float = option(
        0.0, "rate at which elements of the QRNN's kernels are dropped", fraction
    )
    l2: float = option(4e-6, "L2 regularization of the kernels", not_negative)
    encoding: str = option("last", "last or last_mean_max", choice(*ENCODINGS))
    embedding_scale: float = option(
        0.1, "the embedding starts uniform between minus and plus this", positive
    )
    train_embedding: bool = option(True, "train the embedding", flag)
    embeddings: str | None = option(
        None, "file of word vectors that the embedding starts from", path
    )
    pretrained: str | None = option(
        None, "save_path of a language model that this run starts from", path
    )
    layer_rate: float = option(
        1.0, "factor on the learning rate of each lower layer", positive
    )
    unfreeze_epochs: int = option(
        0, "N: train one more layer every N epochs; 0: all layers", count_or_zero
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_without_qrnn(self, "zoneout", "kernel_dropout", "pretrained")
        if self.embeddings is not None and self.pretrained is not None:
            raise ValueError(
                "Options `embeddings` and `pretrained` exclude each other. Received: "
                f"embeddings={self.embeddings!r}, pretrained={self.pretrained!r}"
            )
        for name in ("embeddings", "pretrained"):
            if getattr(self, name) is not None and "embedding_scale" in self.given:
                raise ValueError(
                    f"Option `embedding_scale` does not go with `{name}`, where the "
                    "embedding starts from. "
                    f"Received: embedding_scale={self.embedding_scale!r}, "
                    f"{name}={getattr(self, name)!r}"
                )
        if self.weight_decay and (self.layer_rate != 1 or self.unfreeze_epochs):
            raise ValueError(
                "Option `weight_decay` does not go with `layer_rate` and "
                "`unfreeze_epochs`: it would also change a layer that is not trained. "
                f"Received: weight_decay={self.weight_decay!r}"
            )

    @property
    def seeds(self) -> int:
        return 2 * self.layers + 2


class SentimentAnalysis(Experiment):
    """A sentiment classifier on reviews.

    A new run reads the word vectors, or the run that it is pretrained by. A run that
    goes on needs neither: its weights are in its checkpoint, its sizes and words too.

    Args:
        reviews: the training and validation splits are used.
        options: the recipe.
        resumed: directory of the run that is to go on, if there is one.

    Raises:
        FileNotFoundError: if there is no such file of word vectors or such a run.
        ValueError: if the file or the run is damaged, or does not fit the options.
    """

    objective = OBJECTIVE
    panels = (
        Panel(
            "loss (nats per review)",
            {
                "training": lambda row: row["cross_entropy"],
                "validation": lambda row: row["val_loss"],
            },
        ),
        Panel(
            "accuracy",
            {
                "training": lambda row: row["accuracy"],
                "validation": lambda row: row["val_accuracy"],
            },
        ),
    )
    paths = ("embeddings", "pretrained")
    options: SentimentOptions

    def __init__(
        self,
        reviews: Reviews,
        options: SentimentOptions,
        resumed: Path | None = None,
    ) -> None:
        super().__init__(options, reviews.revision)
        if options.embeddings is None and options.pretrained is None:
            self.scales = ("embedding_scale",)
        self.reviews = reviews
        self.trained: LanguageModel | None = None
        self.vectors: dict[str, np.ndarray] = {}
        self._read = False  # what a new run starts from
        if resumed is None or not self._recall(RunDirectory(resumed)):
            self._read_start()

    def _read_start(self) -> None:
        """Reads what a new run starts from. Sets the vocabulary and the sizes."""
        options = self.options
        self._read = True
        self.sizes = {
            "emb_dim": options.emb_dim or EMB_DIM,
            "units": options.units,
            "layers": options.layers,
            "window": windows(options.window, options.first_window, options.layers),
            "dense": options.dense,
            "pooling": options.pooling,
            "zoneout": options.zoneout or 0.0,
        }
        if options.pretrained is not None:
            self.trained, self.vocabulary = load_trained(
                options.pretrained, "pretrained"
            )
            if self.trained.cell != "qrnn":
                raise ValueError(
                    "Option `pretrained` must be a run with the QRNN. "
                    f"Received: cell={self.trained.cell!r}"
                )
            if UNK not in self.vocabulary.words:
                raise ValueError(
                    f"Option `pretrained` must be a run whose vocabulary has {UNK}: "
                    "reviews have words that it does not know. "
                    f"Received: pretrained={options.pretrained!r}"
                )
            self.sizes |= sizes_of(self.trained)
            if options.zoneout is not None:
                self.sizes["zoneout"] = options.zoneout
        else:
            self.vocabulary = vocabulary_of(self.reviews, options.vocab_size)
        if options.embeddings is not None:
            file = Path(options.embeddings)
            if not file.is_file():
                what = "is no file" if file.exists() else "does not exist"
                raise FileNotFoundError(
                    "Option `embeddings` must be a file of word vectors. "
                    f"Received: {file}, which {what}"
                )
            files = file, file.with_suffix(".txt")  # a .npy file's words
            written = tuple(f.stat().st_mtime_ns for f in files if f.exists())
            self.sizes["emb_dim"], self.vectors = _word_vectors(
                file, written, tuple(self.vocabulary.words)
            )
        self._check_given()

    def _recall(self, run: RunDirectory) -> bool:
        """Takes vocabulary and sizes from the run that is to go on.

        Returns:
            Whether the run has them and started from the same files. Earlier versions
            did not write the sizes.
        """
        if not (run.checkpoint.exists() and run.vocabulary.exists()):
            return False
        found = read_meta(run.checkpoint)["options"]
        start = self._absolute(
            {name: getattr(self.options, name) for name in self.paths}
        )
        if "sizes" not in found or found != found | start:
            return False
        self.sizes, self.vocabulary = found["sizes"], Vocabulary.load(run.vocabulary)
        self._check_given()
        return True

    def _check_given(self) -> None:
        """Refuses an option that was given and is not what is used."""
        options, sizes = self.options, self.sizes
        used, what = {"emb_dim": sizes["emb_dim"]}, "in the word vectors"
        if options.pretrained is not None:
            what = "in that run"
            used |= {"layers": sizes["layers"], "pooling": sizes["pooling"]}
            used |= {"units": sizes["units"][0], "dense": sizes["dense"]}
            used |= {"first_window": sizes["window"][0], "window": sizes["window"][-1]}
            if options.vocab_size < len(self.vocabulary):
                used["vocab_size"] = len(self.vocabulary)
        for name, value in used.items():
            found = getattr(options, name)
            if name in options.given and found not in (None, value):
                raise ValueError(
                    f"Option `{name}` must be {value}, as {what}. "
                    f"Received: {name}={found}"
                )

    @functools.cached_property
    def tokens(self) -> dict[str, list[np.ndarray]]:
        """The tokens of the training and the validation split."""
        splits = {"train": self.reviews.train, "valid": self.reviews.valid}
        return {name: self.encoded(reviews) for name, reviews in splits.items()}

    def encoded(self, reviews: Labelled) -> list[np.ndarray]:
        """The tokens of each review: see `encode_reviews`."""
        return encode_reviews(reviews.texts, self.vocabulary, self.options.max_len)

    @property
    def summary(self) -> str:
        """The data in a line."""
        sizes = [len(getattr(self.reviews, s)) for s in ("train", "valid", "test")]
        text = "{} reviews to train on, {} held out, {} to test with; ".format(*sizes)
        text += f"{len(self.vocabulary)} words"
        if self.vectors:
            found = f"{len(self.vectors)} of them found in {self.options.embeddings}"
            text += f", {found}, {self.sizes['emb_dim']} dimensions"
        if self.trained is not None:
            tokens = np.concatenate(self.tokens["train"])
            unknown = np.mean(tokens == self.vocabulary.words.index(UNK) + 1)
            text += f", {unknown:.2%} of the training reviews' words unknown to it"
        return text

    def data(self) -> dict[str, Any]:
        return {
            "vocabulary": len(self.vocabulary),
            "data": fingerprint_of(self.reviews, self.vocabulary),
        }

    def prepare(self, goes_on: bool) -> None:
        if not (goes_on or self._read):
            self._read_start()
        options = self.options
        words = len(self.vocabulary)
        weights = BYTES_OF_A_WEIGHT * count_weights(options.cell, words, **self.sizes)
        units = self.sizes["units"]
        units = units if isinstance(units, int) else max(units)
        gates = 4 * units * options.batch_size
        longest = max(map(len, self.tokens["train"]))
        check_memory(
            {
                "`units`, `layers` and `window`: the weights": weights,
                "`units` and `batch_size`: the gates of a batch": 4 * gates * longest,
            }
        )

    def batches(self) -> ReviewBatches:
        return ReviewBatches(
            self.reviews.train.labels,
            self.tokens["train"],
            self.options.batch_size,
            self.options.seed,
        )

    def model(self, steps_per_epoch: int | None = None) -> SentimentModel:
        options = self.options
        model = SentimentModel(
            len(self.vocabulary),
            **self.sizes,
            dropout=options.dropout,
            embedding_dropout=options.embedding_dropout,
            kernel_dropout=options.kernel_dropout,
            l2=options.l2,
            cell=options.cell,
            encoding=options.encoding,
            embedding_scale=options.embedding_scale,
            train_embedding=options.train_embedding,
            seed=options.seed,
            vocabulary=self.vocabulary.fingerprint,
            max_len=options.max_len,
            cased=self.reviews.cased,
            dtype=options.dtype_policy,
        )
        model.build()
        model.compile(
            build_optimizer(
                options, steps_per_epoch, **self._layer_rates(model, steps_per_epoch)
            )
        )
        # With mixed_float16 the optimizer is a wrapper with variables of its own.
        model.optimizer.build(model.trainable_variables)
        return model

    def _layer_rates(
        self, model: SentimentModel, steps_per_epoch: int | None
    ) -> dict[str, Any]:
        """Each variable's factor on the learning rate, and its first step."""
        options = self.options
        if options.layer_rate == 1 and not options.unfreeze_epochs:
            return {}
        layers = [model.logit, *model.recurrent[::-1], model.embedding]
        depth = {
            id(variable): n
            for n, layer in enumerate(layers)
            for variable in layer.trainable_variables
        }
        depths = [depth[id(variable)] for variable in model.trainable_variables]
        wait = options.unfreeze_epochs * (steps_per_epoch or 0)
        return {
            "rates": [options.layer_rate**n for n in depths],
            "first_steps": [n * wait for n in depths],
        }

    def start(self, model: SentimentModel) -> SentimentModel:
        matrix = keras.ops.convert_to_numpy(model.embedding.embeddings).copy()
        if self.vectors:
            known = np.stack(list(self.vectors.values()))
            # Words without a vector start as large as those with one.
            matrix *= known.std() / matrix.std()
            for n, word in enumerate(self.vocabulary.words, 1):
                if word in self.vectors:
                    matrix[n] = self.vectors[word]
        if self.trained is not None:
            matrix[1:] = keras.ops.convert_to_numpy(self.trained.embedding.embeddings)
            pairs = zip(model.recurrent, self.trained.recurrent, strict=True)
            for layer, trained in pairs:
                layer.set_weights(trained.get_weights())
        matrix[0] = 0
        model.embedding.embeddings.assign(matrix)
        return model

    def validation(self, model: SentimentModel) -> Callable[[], dict[str, float]]:
        twin = model.copy()
        twin.compile()
        batches = ReviewBatches(
            self.reviews.valid.labels, self.tokens["valid"], self.options.batch_size
        )

        def validate() -> dict[str, float]:
            twin.copy_weights(weights_to_evaluate(model))
            logs = twin.evaluate(batches.for_fit(), verbose=0, return_dict=True)
            # The accuracy of a model that has diverged means nothing.
            accuracy = logs["accuracy"] if math.isfinite(logs["loss"]) else math.nan
            return {"val_loss": logs["cross_entropy"], "val_accuracy": accuracy}

        return validate


@functools.lru_cache(maxsize=1)
def _word_vectors(
    file: Path, written: tuple[int, ...], words: tuple[str, ...]
) -> tuple[int, dict[str, np.ndarray]]:
    """What `read_word_vectors` returns. The trials of a search read the file once.

    Args:
        file: the file.
        written: when it was written, and the words beside it. A new time is a new file.
        words: the words to look for.
    """
    return read_word_vectors(file, words)


def sizes_of(trained: LanguageModel) -> dict[str, Any]:
    """The sizes of a language model, as arguments of a `SentimentModel`."""
    layers = trained.recurrent
    return {
        "emb_dim": trained.get_config()["emb_dim"],
        "units": [layer.units for layer in layers],
        "layers": len(layers),
        "window": [layer.window for layer in layers],
        "dense": False,
        "pooling": layers[0].pooling,
        "zoneout": layers[0].zoneout,
    }


def fingerprint_of(reviews: Reviews, vocabulary: Vocabulary) -> str:
    """What tells the reviews of training and validation from others."""
    train, valid = reviews.train, reviews.valid
    labels = [map(str, each.labels) for each in (train, valid)]
    return fingerprint(vocabulary.words, train.texts, valid.texts, *labels)


def refuse_other_data(
    directory: Path, reviews: Reviews, vocabulary: Vocabulary, max_len: int | None
) -> None:
    """Refuses to evaluate a run on other reviews than it was trained with.

    Other reviews could have a training review of the run in their validation split.

    Raises:
        ValueError: if the reviews or `max_len` are others.
    """
    checkpoint = RunDirectory(directory).checkpoint
    if not checkpoint.exists():
        return
    found = read_meta(checkpoint)["options"]
    if found.get("data") != fingerprint_of(reviews, vocabulary):
        raise ValueError(
            "Options `dataset`, `data_dir`, `revision`, `cased`, `valid_size` and "
            "`valid_seed` must give the reviews of the run. "
            f"Received: {directory} and {reviews.name}"
        )
    if found.get("max_len") != max_len:
        raise ValueError(
            f"Option `max_len` must be {found.get('max_len')}, as in the run. "
            f"Received: max_len={max_len}"
        )


def count_weights(
    cell: str,
    vocab_size: int,
    emb_dim: int,
    units: int | list[int],
    layers: int,
    window: int | list[int],
    dense: bool,
    pooling: str,
    zoneout: float = 0.0,
) -> int:
    """Number of weights below the logit. The arguments are those of the model."""
    total, width = emb_dim * (vocab_size + 1), emb_dim
    for n in range(layers):
        size = units if isinstance(units, int) else units[n]
        steps = window if isinstance(window, int) else window[n]
        if cell == "qrnn":
            total += len(GATES[pooling]) * size * (steps * width + 1)
        else:
            total += 4 * size * (width + size + 1)
        width = size + width * dense
        if width > MOST:
            break
    return total


def vocabulary_of(reviews: Reviews, size: int) -> Vocabulary:
    """The most frequent words of the training reviews, and `<unk>`."""
    words = Vocabulary.build(reviews.train.texts, size).words
    return Vocabulary(words if UNK in words else [*words, UNK])


def load_sentiment(
    directory: str | os.PathLike, option: str | None = None
) -> tuple[SentimentModel, Vocabulary]:
    """The best sentiment model of a run, and its vocabulary.

    Args:
        directory: the run's `save_path`.
        option: the option with which a program was given `directory`, for messages.

    Raises:
        FileNotFoundError: if `model.keras` or `vocabulary.json` is missing.
        ValueError: if a file is damaged, or if the vocabulary does not fit the model.
    """
    return load_run(directory, option, SentimentModel, "train_sentiment.py")


def draw_states(
    path: Path,
    model: SentimentModel,
    vocabulary: Vocabulary,
    tokens: np.ndarray,
    title: str,
) -> None:
    """Draws the states of the last layer over the words of a review (figure 3).

    Args:
        path: the picture to write. Its suffix is the format.
        model: a built model.
        vocabulary: of the model.
        tokens: of the review: see `encode_reviews`.
        title: what the states are over, and what the model says of it.
    """
    states = keras.ops.convert_to_numpy(model.states(tokens[None]))[0]
    words = vocabulary.decode(tokens - 1)
    plot_states(path, states, words, f"last layer's states over {title}")


def confusion_matrix(labels: np.ndarray, logits: np.ndarray) -> list[list[int]]:
    """Numbers of reviews: a row for each label, a column for each prediction."""
    predicted = logits > 0
    return [[int((predicted[labels == y] == p).sum()) for p in (0, 1)] for y in (0, 1)]
