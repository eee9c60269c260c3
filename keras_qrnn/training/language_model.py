"""Training of a language model: its model, its batches and its checks."""

import functools
import math
import os
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_qrnn.data import BPTTBatches, Corpus, Vocabulary, fingerprint
from keras_qrnn.models import LanguageModel
from keras_qrnn.ops.equations import GATES
from keras_qrnn.training.evaluation import Evaluator, load_run
from keras_qrnn.training.experiment import (
    BYTES_OF_A_WEIGHT,
    Experiment,
    check_memory,
    train_experiment,
)
from keras_qrnn.training.objective import Objective
from keras_qrnn.training.optimizers import build_optimizer
from keras_qrnn.training.options import TrainingOptions
from keras_qrnn.training.plots import Panel

OBJECTIVE = Objective("val_perplexity", "min")
PANELS = (
    Panel(
        "loss (nats per token)",
        {
            "training": lambda row: math.log(row["perplexity"]),
            "validation": lambda row: math.log(row["val_perplexity"]),
        },
    ),
    Panel(
        "perplexity",
        {
            "training": lambda row: row["perplexity"],
            "validation": lambda row: row["val_perplexity"],
        },
        log=True,
    ),
)


def build_language_model(
    options: TrainingOptions,
    vocab_size: int,
    steps_per_epoch: int | None = None,
    vocabulary: str | None = None,
) -> LanguageModel:
    """The model of `options`, built and compiled with the optimizer of `options`.

    Args:
        options: the recipe.
        vocab_size: number of words.
        steps_per_epoch: number of batches of an epoch. A one-cycle schedule needs it.
        vocabulary: fingerprint of the vocabulary, saved with the model.

    Raises:
        ValueError: if a one-cycle schedule gets no `steps_per_epoch`.
    """
    model = LanguageModel(
        vocab_size,
        emb_dim=options.emb_dim,
        units=options.units,
        layers=options.layers,
        batch_size=options.batch_size,
        window=options.windows,
        pooling=options.pooling,
        zoneout=options.zoneout,
        dropout=options.dropout,
        cell=options.cell,
        embedding_scale=options.embedding_scale,
        tied=options.tied,
        locked_dropout=options.locked_dropout,
        embedding_dropout=options.embedding_dropout,
        hidden_dropout=options.hidden_dropout,
        kernel_dropout=options.kernel_dropout,
        activation_regularization=options.activation_regularization,
        temporal_regularization=options.temporal_regularization,
        sampled_words=options.sampled_words,
        seed=options.seed,
        vocabulary=vocabulary,
        dtype=options.dtype_policy,
    )
    model.build()
    model.compile(build_optimizer(options, steps_per_epoch))
    # With mixed_float16 the optimizer is a wrapper with variables of its own.
    model.optimizer.build(model.trainable_variables)
    return model


class LanguageModelling(Experiment):
    """A language model on a corpus.

    Args:
        corpus: the text. The training and validation splits are used.
        vocabulary: the vocabulary of the training split.
        options: the recipe.
    """

    objective = OBJECTIVE
    watched = "perplexity"
    panels = PANELS
    paths = ("finetune",)
    options: TrainingOptions

    def __init__(
        self, corpus: Corpus, vocabulary: Vocabulary, options: TrainingOptions
    ) -> None:
        super().__init__(options, corpus.revision)
        if options.finetune is None:
            self.scales = ("embedding_scale",)
        self.corpus = corpus
        self.vocabulary = vocabulary
        self._trained: LanguageModel | None = None

    @property
    def summary(self) -> str:
        words = f"{len(self.vocabulary)} words, from {self.corpus.name}"
        return f"{len(self.train_ids)} tokens to train on, {words}"

    def data(self) -> dict[str, Any]:
        words = self.vocabulary.words
        return {
            "vocabulary": len(words),
            "data": fingerprint(words, self.corpus.train, self.corpus.valid),
        }

    @functools.cached_property
    def train_ids(self) -> np.ndarray:
        return self.vocabulary.encode(self.corpus.train, "training")

    @functools.cached_property
    def valid_ids(self) -> np.ndarray:
        return self.vocabulary.encode(self.corpus.valid, "validation")

    def prepare(self, goes_on: bool) -> None:
        tokens = len(self.train_ids)
        check_sizes(self.options, len(self.vocabulary), tokens)
        _ = self.valid_ids  # refuses unknown words
        if self.options.finetune is None or goes_on:
            return
        self._trained, found = load_trained(self.options.finetune, "finetune")
        if found.words != self.vocabulary.words:
            raise ValueError(
                f"Option `finetune`: the run in {self.options.finetune} has another "
                "vocabulary than that of this corpus"
            )

    def batches(self) -> BPTTBatches:
        options = self.options
        return BPTTBatches(
            self.train_ids,
            options.batch_size,
            options.seq_len,
            lengths_seed=options.seed if options.random_lengths else None,
        )

    def model(self, steps_per_epoch: int | None = None) -> LanguageModel:
        return build_language_model(
            self.options,
            len(self.vocabulary),
            steps_per_epoch,
            self.vocabulary.fingerprint,
        )

    def start(self, model: LanguageModel) -> LanguageModel:
        if self._trained is not None:
            _take_weights(str(self.options.finetune), self._trained, model)
        return model

    def copy_of(self, model: LanguageModel) -> LanguageModel:
        return model.with_all_words()

    def validation(self, model: LanguageModel) -> Callable[[], dict[str, float]]:
        evaluator = Evaluator(model, self.valid_ids, self.options.eval_steps)

        def validate() -> dict[str, float]:
            perplexity = evaluator()
            return {"val_perplexity": perplexity, "val_loss": math.log(perplexity)}

        return validate


def train_language_model(
    corpus: Corpus,
    vocabulary: Vocabulary,
    options: TrainingOptions,
    save_path: str | os.PathLike,
    resume: bool = False,
    callbacks: list[keras.callbacks.Callback] | None = None,
    verbose: int | str = "auto",
) -> list[dict]:
    """Trains a language model and keeps the best by validation in `save_path`.

    Args:
        corpus: the text. The training and validation splits are used.
        vocabulary: the vocabulary of the training split.
        options: the recipe.
        save_path, resume, callbacks, verbose: see `train_experiment`, which also says
            what is returned and which errors are raised.
    """
    experiment = LanguageModelling(corpus, vocabulary, options)
    return train_experiment(experiment, save_path, resume, callbacks or (), verbose)


def check_sizes(options: TrainingOptions, vocab_size: int, tokens: int) -> None:
    """Refuses options that do not fit the corpus or the machine. Allocates nothing.

    Args:
        options: the recipe.
        vocab_size: words of the vocabulary.
        tokens: tokens of the training split.

    Raises:
        ValueError: if there are fewer targets than rows; if `seq_len` is larger than
            the number of targets of a row; if `sampled_words` is larger than
            `vocab_size`; if the weights, or the logits of a batch, need more memory
            than the machine has.
    """
    targets = tokens - 1
    if targets < options.batch_size:
        raise ValueError(
            "The training split must have at least batch_size + 1 = "
            f"{options.batch_size + 1} tokens. Received: {tokens} tokens"
        )
    row = -(-targets // options.batch_size)
    if options.seq_len > row:
        raise ValueError(
            f"Option `seq_len` must be at most {row}, the tokens of the training split "
            f"for each row of a batch. Received: seq_len={options.seq_len}, "
            f"batch_size={options.batch_size}"
        )
    if options.sampled_words > vocab_size:
        raise ValueError(
            f"Option `sampled_words` must be at most {vocab_size}, the words of the "
            f"vocabulary. Received: sampled_words={options.sampled_words}"
        )
    # Bytes in float32. The logits are the largest tensor of a batch, in training or in
    # an evaluation.
    words = options.sampled_words or vocab_size
    trained = options.batch_size * options.seq_len * words
    logits = 4 * max(trained, options.eval_steps * vocab_size)
    weights = BYTES_OF_A_WEIGHT * count_weights(options, vocab_size)
    check_memory(
        {
            "`units`, `layers`, `window` and `emb_dim`: the weights": weights,
            "`batch_size` and `seq_len`: the logits of a batch": logits,
        }
    )


def count_weights(options: TrainingOptions, vocab_size: int) -> int:
    """Number of weights of the model of `options`. The model is not built."""

    def layer(inputs: int, units: int, window: int) -> int:
        if options.cell == "qrnn":
            gates = len(GATES[options.pooling])
            return gates * units * (window * inputs + 1)
        return 4 * units * (inputs + units + 1)

    last = options.emb_dim if options.tied else options.units
    first_window = options.first_window or options.window
    total = options.emb_dim * vocab_size + vocab_size  # embedding, softmax's bias
    if not options.tied:
        total += last * vocab_size
    if options.layers == 1:
        return total + layer(options.emb_dim, last, first_window)
    total += layer(options.emb_dim, options.units, first_window)
    total += (options.layers - 2) * layer(options.units, options.units, options.window)
    return total + layer(options.units, last, options.window)


def load_trained(
    directory: str | os.PathLike, option: str | None = None
) -> tuple[LanguageModel, Vocabulary]:
    """The best language model of a run, and its vocabulary.

    Args:
        directory: the run's `save_path`.
        option: the option with which a program was given `directory`, for messages.

    Raises:
        FileNotFoundError: if `model.keras` or `vocabulary.json` is missing.
        ValueError: if a file is damaged, or if the vocabulary does not fit the model.
    """
    return load_run(directory, option, LanguageModel, "train_lm.py")


def _take_weights(run: str, trained: LanguageModel, model: LanguageModel) -> None:
    found, expected = (
        {weight.path.partition("/")[2]: tuple(weight.shape) for weight in m.weights}
        for m in (trained, model)
    )
    if found != expected:
        raise ValueError(
            f"Option `finetune`: the model in {run} is not of these options. Expected "
            f"weights of shapes {expected}. Received: {found}"
        )
    model.copy_weights(trained.weights)
