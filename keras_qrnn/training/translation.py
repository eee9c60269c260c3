"""Training of a translation model: its options, its model, its batches, BLEU."""

import functools
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_qrnn.data import fingerprint
from keras_qrnn.data.characters import CharacterVocabulary
from keras_qrnn.data.multi30k import Pairs, ParallelText
from keras_qrnn.data.pair_batches import PairBatches, without_long
from keras_qrnn.models.translation import CELLS, TranslationModel
from keras_qrnn.ops.equations import GATES
from keras_qrnn.training.evaluation import load_run, weights_to_evaluate
from keras_qrnn.training.experiment import BYTES_OF_A_WEIGHT, Experiment, check_memory
from keras_qrnn.training.objective import Objective
from keras_qrnn.training.optimizers import build_optimizer
from keras_qrnn.training.options import (
    RunOptions,
    choice,
    count,
    fraction,
    option,
    redefault,
    takes_older_names,
)
from keras_qrnn.training.plots import Panel

OBJECTIVE = Objective("val_loss", "min")


@takes_older_names
@dataclass(frozen=True)
class TranslationOptions(RunOptions):
    """The recipe of a translation model; the defaults are those of the paper.

    That is arXiv 1611.01576, section 3.3. `TranslationModel` explains the options that
    are its arguments. The paper does not state the size of the embedding. Others are:

    - Pairs with a sentence of more than `max_length` characters are left out of the
      training.
    - Characters that occur less than `min_count` times in the training split are
      `<unk>`.
    - `length_step` is the `multiple` of `PairBatches`.

    Raises:
        ValueError: if a value is out of its range.
    """

    cell: str = option("qrnn", "qrnn or lstm", choice(*CELLS))
    batch_size: int = redefault("batch_size", 16)
    learning_rate_decay: float = redefault("learning_rate_decay", 1.0)
    grad_clip: float | None = redefault("grad_clip", 5.0)
    epsilon: float = redefault("epsilon", 1e-8)
    units: int = option(320, "units of each layer", count)
    layers: int = option(4, "layers of the encoder and of the decoder", count)
    first_window: int = option(
        6, "window of the first encoder layer", count, "first_qrnn_k"
    )
    window: int = option(2, "window of the other layers", count, "qrnn_k")
    emb_dim: int = option(128, "size of the embeddings", count)
    pooling: str = option("fo", "f, fo or ifo", choice(*GATES))
    zoneout: float = option(0.0, "zoneout rate", fraction)
    dropout: float = option(0.0, "dropout rate", fraction)
    max_length: int = option(
        300, "characters of the longest sentence to train on", count
    )
    min_count: int = option(
        2, "occurrences of a character in the training split, or it is <unk>", count
    )
    length_step: int = option(
        16, "lengths in a batch are rounded up to a multiple of this", count
    )

    @property
    def seeds(self) -> int:
        return 4 * self.layers + 2


# The options of each dataset that differ from the defaults. The sample has few words
# and short sentences: a small model learns it in a minute on two cores.
PRESETS: dict[str, dict[str, Any]] = {
    "multi30k": {},
    "sample": {
        "units": 64, "layers": 2, "emb_dim": 32, "batch_size": 32, "epochs": 6,
        "learning_rate": 0.004, "learning_rate_decay": 0.3, "constant_epochs": 5,
        "length_step": 28,
    },
}  # fmt: skip


class Translation(Experiment):
    """A translation model on a parallel text.

    Args:
        text: its training and validation splits are used.
        options: the recipe.

    Attributes:
        vocabulary: the characters of the training split, those of both languages.
        pairs: the pairs to train on.
        long, empty: numbers of pairs that are left out of the training: those with too
            long and those with empty sentences.

    Raises:
        ValueError: if no pair is left to train on.
    """

    objective = OBJECTIVE
    watched = "perplexity"
    panels = (
        Panel(
            "loss (nats per character)",
            {
                "training": lambda row: math.log(row["perplexity"]),
                "validation": lambda row: row["val_loss"],
            },
        ),
    )
    options: TranslationOptions

    def __init__(self, text: ParallelText, options: TranslationOptions) -> None:
        super().__init__(options, text.revision)
        self.text = text
        self.pairs, self.long, self.empty = without_long(text.train, options.max_length)
        if not len(self.pairs):
            raise ValueError(
                f"Option `max_length` leaves no pair to train on. Of {len(text.train)} "
                f"pairs {self.long} have a longer sentence and {self.empty} an empty "
                f"one. Received: max_length={options.max_length}"
            )
        self.vocabulary = CharacterVocabulary.build(
            [*self.pairs.source, *self.pairs.target], options.min_count
        )

    @property
    def summary(self) -> str:
        return (
            f"{len(self.pairs)} pairs to train on, {len(self.vocabulary)} characters. "
            f"Left out: {self.long} pairs with a sentence of more than "
            f"{self.options.max_length} characters, {self.empty} with an empty one"
        )

    def data(self) -> dict[str, Any]:
        sides = [
            side
            for pairs in (self.pairs, self.text.valid)
            for side in (pairs.source, pairs.target)
        ]
        words = self.vocabulary.words
        return {"vocabulary": len(words), "data": fingerprint(words, *sides)}

    @property
    def longest(self) -> int:
        """Characters of the longest sentence to train on, of the source language."""
        return max(map(len, self.pairs.source))

    def prepare(self, goes_on: bool) -> None:
        options, vocabulary = self.options, len(self.vocabulary)
        longest = max(map(len, [*self.pairs.source, *self.pairs.target]))
        longest += options.length_step
        # Bytes in float32.
        weights = BYTES_OF_A_WEIGHT * count_weights(options, vocabulary)
        widest = max(vocabulary, longest, 3 * options.units)
        batch = 4 * options.batch_size * longest * widest
        check_memory(
            {
                "`units`, `layers`, `window` and `emb_dim`: the weights": weights,
                "`batch_size` and `max_length`: the largest array of a batch": batch,
            }
        )

    @functools.cached_property
    def _train_ids(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        return self._encoded(self.pairs)

    def _encoded(self, pairs: Pairs) -> tuple[list[np.ndarray], list[np.ndarray]]:
        encode = self.vocabulary.encode_each
        return encode(pairs.source), encode(pairs.target)

    def batches(self) -> PairBatches:
        options = self.options
        return PairBatches(
            *self._train_ids, options.batch_size, options.seed, options.length_step
        )

    def model(self, steps_per_epoch: int | None = None) -> TranslationModel:
        options = self.options
        model = TranslationModel(
            len(self.vocabulary),
            emb_dim=options.emb_dim,
            units=options.units,
            layers=options.layers,
            first_window=options.first_window,
            window=options.window,
            pooling=options.pooling,
            zoneout=options.zoneout,
            dropout=options.dropout,
            cell=options.cell,
            seed=options.seed,
            vocabulary=self.vocabulary.fingerprint,
            longest=self.longest,
            dtype=options.dtype_policy,
        )
        model.build()
        model.compile(build_optimizer(options, steps_per_epoch))
        # With mixed_float16 the optimizer is a wrapper with variables of its own.
        model.optimizer.build(model.trainable_variables)
        return model

    def validation(self, model: TranslationModel) -> Callable[[], dict[str, float]]:
        twin = model.copy()
        twin.compile()
        # No gradient is kept: larger batches fit into memory.
        batches = PairBatches(
            *self._encoded(self.text.valid),
            4 * self.options.batch_size,
            multiple=self.options.length_step,
        ).for_fit()

        def validate() -> dict[str, float]:
            twin.copy_weights(weights_to_evaluate(model))
            logs = twin.evaluate(batches, verbose=0, return_dict=True)
            return {"val_loss": math.log(logs["perplexity"])}

        return validate


def count_weights(options: TranslationOptions, vocab_size: int) -> int:
    """Number of weights of the model of `options`. The model is not built."""
    units, layers = options.units, options.layers
    total = (2 * options.emb_dim + units + 1) * vocab_size + 2 * units**2
    for decoder in (False, True):
        for n in range(layers):
            inputs = units if n else options.emb_dim
            if options.cell == "lstm":
                total += 4 * units * (inputs + units + 1)
                continue
            pooling = "fo" if decoder and n == layers - 1 else options.pooling
            window = options.window if decoder or n else options.first_window
            context = units if decoder else 0
            total += len(GATES[pooling]) * units * (window * inputs + context + 1)
    return total


def load_translation(
    directory: str | os.PathLike, option: str | None = None
) -> tuple[TranslationModel, CharacterVocabulary]:
    """The best model of a run of train_translation.py, and its vocabulary.

    Args:
        directory: the run's `save_path`.
        option: the option with which a program was given `directory`, for messages.

    Raises:
        FileNotFoundError: if `model.keras` or `vocabulary.json` is missing.
        ValueError: if a file is damaged, or if the vocabulary does not fit the model.
    """
    return load_run(
        directory,
        option,
        TranslationModel,
        "train_translation.py",
        CharacterVocabulary,
    )


def need_sacrebleu() -> None:
    """Raises an ImportError if sacrebleu is not installed."""
    try:
        import sacrebleu  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "BLEU is computed with sacrebleu, which is not installed: "
            "pip install '.[translation]' in a checkout of keras-qrnn"
        ) from error


def bleu(translations: Sequence[str], references: Sequence[str]) -> tuple[float, str]:
    """The corpus BLEU of sacrebleu, in percent, and sacrebleu's signature.

    Args:
        translations: of a model.
        references: the right translation of each.

    Raises:
        ImportError: if sacrebleu is not installed.
    """
    need_sacrebleu()
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU()
    score = metric.corpus_score(list(translations), [list(references)]).score
    return float(score), str(metric.get_signature())


def accuracy(translations: Sequence[str], references: Sequence[str]) -> float:
    """The share of translations that are the reference, character by character."""
    pairs = list(zip(translations, references, strict=True))
    return sum(found == right for found, right in pairs) / len(pairs)
