"""The tasks that can be searched: their options, data, experiments and spaces.

The other files of the search know a task by its `Task` alone. `TASKS` has them by name.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from keras_qrnn.data import Corpus, Vocabulary, fingerprint
from keras_qrnn.training import TrainingOptions
from keras_qrnn.training.data_options import (
    CorpusOptions,
    DataOptions,
    ReviewsOptions,
    TextOptions,
)
from keras_qrnn.training.experiment import Experiment
from keras_qrnn.training.language_model import LanguageModelling
from keras_qrnn.training.objective import Objective
from keras_qrnn.training.options import (
    RunOptions,
    count,
    named_fields,
    option,
    type_of,
)
from keras_qrnn.training.sentiment import SentimentAnalysis, SentimentOptions
from keras_qrnn.training.translation import PRESETS, Translation, TranslationOptions

# Options that are the same in all trials: they say how long a trial lasts, or what its
# objective means, or they are words of their own in the task's program.
FIXED = (
    "cell",
    "early_stopping",
    "save_every",
    "seed",
    "vocab_size",
    "min_count",
    "max_length",
)
# Options that a search does not have: its own `epochs` are those of a trial, and on
# several devices it runs several trials at a time.
NOT_OF_A_SEARCH = ("epochs", "distribution")
# Options that belong to the search and not to the training of the best in full.
DURATION = ("epochs", "early_stopping", "save_every")
# Options that other cells than the QRNN do not use.
USED_BY_QRNN = ("window", "first_window", "pooling", "zoneout", "kernel_dropout")
# Options that some values of another option do not use: the option, the other one, and
# the values of the other one that use it.
USED_WITH = (
    ("beta_1", "optimizer", {"adamw"}),
    ("beta_2", "optimizer", {"adamw"}),
    ("rho", "optimizer", {"rmsprop"}),
    ("epsilon", "optimizer", {"adamw", "rmsprop"}),
    ("cycle_rise", "schedule", {"one_cycle"}),
    ("cycle_hold", "schedule", {"one_cycle"}),
    ("cycle_anneal", "schedule", {"one_cycle"}),
    ("cycle_beta_1", "schedule", {"one_cycle"}),
    ("cycle_beta_1", "optimizer", {"adamw"}),
    ("learning_rate_decay", "schedule", {"decay"}),
    ("constant_epochs", "schedule", {"decay"}),
)
# Options that are those of the run that a training starts from.
SIZES = ("units", "layers", "window", "first_window", "emb_dim", "pooling")
# The options that say what a training starts from, and those that it decides.
STARTS = {
    "finetune": (*SIZES, "embedding_scale"),
    "pretrained": (*SIZES, "embedding_scale"),
    "embeddings": ("emb_dim", "embedding_scale"),
}
# A task's experiment with some options.
MakeExperiment = Callable[[Any], Experiment]


@dataclass(frozen=True)
class Recipe:
    """What a search does where the command line says nothing else.

    Attributes:
        space: the values of each hyperparameter, as the command line has them.
        epochs: epochs of a trial.
        max_trials: number of trials.
        options: other options that differ from the defaults of the task.
    """

    space: Mapping[str, str]
    epochs: int
    max_trials: int
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A task that can be searched.

    Attributes:
        name: that of the command line.
        program: the program that trains the best trial's model in full.
        options: the dataclass of the training's options.
        data: the dataclass of the data's options.
        experiment: the class of the experiments. It has the objective.
        load: loads the data and returns a function that makes the experiment of some
            options.
        recipes: by dataset; that of `"pretrained"` is for option `pretrained`.
        fingerprint: hexadecimal digits that tell an experiment's data from others.
        search_only: options of the data that the program does not have.
    """

    name: str
    program: str
    options: type[RunOptions]
    data: type[DataOptions]
    experiment: type[Experiment]
    load: Callable[[Any], MakeExperiment]
    recipes: Mapping[str, Recipe]
    fingerprint: Callable[[Any], str] = lambda experiment: experiment.data()["data"]
    search_only: tuple[str, ...] = ()

    @property
    def objective(self) -> Objective:
        """The metric that ranks the trials, and its direction."""
        return self.experiment.objective

    @property
    def shown(self) -> tuple[str, str]:
        """The metrics that are printed of an epoch."""
        return self.experiment.watched, self.objective.name

    @property
    def plain(self) -> list[str]:
        """The options that have one value: fixed ones, flags and paths."""
        return [
            name
            for name in named_fields(self.options)
            if name in FIXED
            or name in self.experiment.paths
            or type_of(self.options, name) is bool
        ]

    @property
    def searchable(self) -> list[str]:
        """The options that can be searched, those of the recipes first."""
        first = [name for recipe in self.recipes.values() for name in recipe.space]
        left_out = {*NOT_OF_A_SEARCH, *self.plain}
        names = [name for name in named_fields(self.options) if name not in left_out]
        return list(dict.fromkeys([*first, *names]))

    def recipe(self, dataset: str, pretrained: str | None) -> Recipe:
        """The recipe for a dataset, or for a run that starts from another one."""
        return self.recipes["pretrained" if pretrained else dataset]


def trial_options(options: Any, values: Mapping[str, Any]) -> Any:
    """`options` with the hyperparameters of a trial.

    Args:
        options: the options of the search.
        values: the hyperparameters of a trial. `tuner/epochs` is Hyperband's number of
            epochs.
    """
    searched = {n: v for n, v in values.items() if not n.startswith("tuner/")}
    return options.changed(
        epochs=values.get("tuner/epochs", options.epochs), **searched
    )


# The language model


@dataclass(frozen=True)
class SearchedCorpus(CorpusOptions):
    """A corpus of which a search may train on a part."""

    max_tokens: int | None = option(
        None,
        "train on the first so many tokens, up to the end of their last sentence; if "
        "not given on all",
        count,
    )


def first_tokens(corpus: Corpus, count: int) -> Corpus:
    """The corpus with a shorter training split.

    Args:
        corpus: the corpus to shorten.
        count: tokens to keep, `<eos>` counted. The last sentence is kept whole.
    """
    lines: list[str] = []
    tokens = 0
    for line in corpus.train:
        if tokens >= count:
            break
        lines.append(line)
        tokens += len(line.split()) + 1  # <eos>
    return replace(corpus, train=lines)


def load_language_model(data: SearchedCorpus) -> MakeExperiment:
    """The vocabulary is that of the whole training split, even with `max_tokens`.

    So models have the size, and perplexities the meaning, of a full training.
    """
    whole = corpus = data.load()
    if data.max_tokens is not None:
        corpus = first_tokens(whole, data.max_tokens)

    def experiment(options: TrainingOptions) -> LanguageModelling:
        vocabulary = Vocabulary.build(whole.train, options.vocab_size)
        return LanguageModelling(corpus, vocabulary, options)

    return experiment


def fingerprint_of_text(experiment: LanguageModelling) -> str:
    """That of the training and validation split, and of a vocabulary that may be cut.

    The records of earlier searches have that of the splits alone. With all words of the
    corpus such a search goes on.
    """
    parts = [experiment.corpus.train, experiment.corpus.valid]
    words = experiment.vocabulary.words
    if len(words) == experiment.options.vocab_size:
        parts.append(words)
    return fingerprint(*parts)


LANGUAGE_MODEL = Task(
    name="lm",
    program="examples/train_lm.py",
    options=TrainingOptions,
    data=SearchedCorpus,
    experiment=LanguageModelling,
    load=load_language_model,
    # The sample is generated by a small grammar; PTB is for models of the paper's size.
    # A search of the sample takes minutes.
    recipes={
        "sample": Recipe(
            {
                "units": "16-96",
                "window": "1-3",
                "zoneout": "0.0-0.3",
                "layers": "1-2",
                "dropout": "0.0-0.3",
                "emb_dim": "16-64",
                "pooling": "f,fo,ifo",
                "learning_rate": "0.05-1.0",
            },
            epochs=4,
            max_trials=10,
        ),
        "ptb": Recipe(
            {
                "units": "256-1024",
                "window": "1-4",
                "zoneout": "0.0-0.5",
                "layers": "1-3",
                "dropout": "0.2-0.7",
                "emb_dim": "256-1024",
                "pooling": "f,fo,ifo",
                "learning_rate": "0.3-3.0",
            },
            epochs=6,
            max_trials=20,
        ),
    },
    fingerprint=fingerprint_of_text,
    search_only=("max_tokens",),
)


# Sentiment


def load_sentiment_analysis(data: ReviewsOptions) -> MakeExperiment:
    return functools.partial(SentimentAnalysis, data.load())


SENTIMENT = Task(
    name="sentiment",
    program="examples/train_sentiment.py",
    options=SentimentOptions,
    data=ReviewsOptions,
    experiment=SentimentAnalysis,
    load=load_sentiment_analysis,
    recipes={
        "sample": Recipe(
            {
                "units": "16-48",
                "layers": "1-2",
                "window": "1-3",
                "dropout": "0.0-0.3",
                "zoneout": "0.0-0.2",
                "emb_dim": "8-32",
                "pooling": "f,fo,ifo",
                "learning_rate": "0.003-0.03",
            },
            epochs=3,
            max_trials=8,
            options={"optimizer": "adamw", "batch_size": 32},
        ),
        "imdb": Recipe(
            {
                "units": "128-320",
                "layers": "2-4",
                "window": "1-4",
                "dropout": "0.1-0.5",
                "zoneout": "0.0-0.3",
                "pooling": "f,fo,ifo",
                "l2": "1e-7-1e-4",
                "learning_rate": "0.0003-0.003",
            },
            epochs=4,
            max_trials=16,
        ),
        # The sizes are those of the language model.
        "pretrained": Recipe(
            {
                "dropout": "0.1-0.6",
                "kernel_dropout": "0.0-0.3",
                "encoding": "last,last_mean_max",
                "layer_rate": "0.3-1.0",
                "unfreeze_epochs": "0,1",
                "learning_rate": "0.0003-0.003",
            },
            epochs=4,
            max_trials=12,
        ),
    },
)


# Translation


def load_translation(data: TextOptions) -> MakeExperiment:
    return functools.partial(Translation, data.load())


TRANSLATION = Task(
    name="translation",
    program="examples/train_translation.py",
    options=TranslationOptions,
    data=TextOptions,
    experiment=Translation,
    load=load_translation,
    recipes={
        "sample": Recipe(
            {
                "units": "32-96",
                "layers": "1-2",
                "first_window": "2-6",
                "window": "1-3",
                "dropout": "0.0-0.2",
                "emb_dim": "16-48",
                "pooling": "fo,ifo",
                "learning_rate": "0.001-0.01",
            },
            epochs=3,
            max_trials=8,
            options=PRESETS["sample"],
        ),
        "multi30k": Recipe(
            {
                "units": "192-448",
                "layers": "2-4",
                "first_window": "2-6",
                "window": "1-3",
                "dropout": "0.0-0.4",
                "zoneout": "0.0-0.2",
                "emb_dim": "64-192",
                "pooling": "f,fo,ifo",
                "learning_rate": "0.0003-0.003",
            },
            epochs=4,
            max_trials=16,
            options=PRESETS["multi30k"],
        ),
    },
)

TASKS = {task.name: task for task in (LANGUAGE_MODEL, SENTIMENT, TRANSLATION)}
