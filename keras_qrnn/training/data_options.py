"""The options of a task's data: which data a program loads."""

import abc
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from keras_qrnn.data import (
    Corpus,
    ParallelText,
    Reviews,
    load_corpus,
    load_parallel_text,
    load_reviews,
)
from keras_qrnn.training.options import (
    check_each,
    choice,
    count,
    count_or_zero,
    defaults_of,
    flag,
    not_empty,
    option,
    path,
    redefault,
)

REVISION = "revision of the data set on the hub: a branch, a tag or a commit"


@dataclass(frozen=True)
class DataOptions(abc.ABC):
    """Which data to load. A task has a subclass.

    Raises:
        ValueError: if a value is out of its range.
    """

    hub: ClassVar[str]  # the dataset that comes from the hub

    dataset: str
    data_dir: str | None
    revision: str | None

    def __post_init__(self) -> None:
        check_each(self)
        from_hub = self.dataset == self.hub and self.data_dir is None
        if self.revision is not None and not from_hub:
            raise ValueError(
                "Option `revision` goes with the data set of the hub, not with files "
                f"or the sample. Received: revision={self.revision!r}, "
                f"dataset={self.dataset!r}, data_dir={self.data_dir!r}"
            )

    @abc.abstractmethod
    def load(self) -> Any:
        """The data."""

    @property
    def short_name(self) -> str | None:
        """A name for a directory of results. None for the data set of the hub."""
        if self.data_dir is not None:
            return Path(self.data_dir).resolve().name
        return self.dataset if self.dataset != self.hub else None

    def command_line(self, without: Collection[str] = ()) -> list[str]:
        """The options of a command line that loads the same data.

        Args:
            without: names of options to leave out.
        """
        words = []
        for name, default in defaults_of(type(self)).items():
            value = getattr(self, name)
            if value == default or name in without:
                continue
            if isinstance(value, bool):
                words.append(f"--{name}" if value else f"--no{name}")
            else:
                words += [f"--{name}", str(value)]
        return words


@dataclass(frozen=True)
class CorpusOptions(DataOptions):
    """Which text a language model learns: see `load_corpus`."""

    hub = "ptb"

    dataset: str = option("ptb", "ptb or sample", choice("ptb", "sample"))
    data_dir: str | None = option(None, "directory with {train,valid,test}.txt", path)
    revision: str | None = option(None, REVISION, not_empty)

    def load(self) -> Corpus:
        return load_corpus(self.dataset, self.data_dir, self.revision)


@dataclass(frozen=True)
class ReviewsOptions(DataOptions):
    """Which reviews a sentiment classifier learns: see `load_reviews`."""

    hub = "imdb"

    dataset: str = option("imdb", "imdb or sample", choice("imdb", "sample"))
    data_dir: str | None = option(
        None, "directory, or tar archive, with {train,test}/{neg,pos}", path
    )
    revision: str | None = redefault("revision", None, CorpusOptions)
    valid_size: int | None = option(
        None,
        "training reviews of the validation split; if not given a tenth of them",
        count,
    )
    valid_seed: int = option(
        0, "seed of the choice of the validation split", count_or_zero
    )
    cased: bool = option(False, "keep capitals", flag)

    def load(self, unlabelled: bool = False) -> Reviews:
        return load_reviews(
            self.dataset,
            self.data_dir,
            self.valid_size,
            self.valid_seed,
            self.cased,
            unlabelled,
            self.revision,
        )


@dataclass(frozen=True)
class TextOptions(DataOptions):
    """Which parallel text a translation model learns: see `load_parallel_text`."""

    hub = "multi30k"

    dataset: str = option(
        "multi30k", "multi30k or sample", choice("multi30k", "sample")
    )
    data_dir: str | None = option(
        None, "directory with {train,val}.{de,en} and test sets, plain or .gz", path
    )
    revision: str | None = redefault("revision", None, CorpusOptions)
    source: str = option("de", "source language", not_empty)
    target: str = option("en", "target language", not_empty)

    def load(self) -> ParallelText:
        languages = (self.source, self.target)
        return load_parallel_text(self.dataset, self.data_dir, languages, self.revision)

    @property
    def languages(self) -> str | None:
        """A name for a directory of results. None for German to English."""
        defaults = defaults_of(TextOptions)
        if (self.source, self.target) == (defaults["source"], defaults["target"]):
            return None
        return f"{self.source}-{self.target}"
