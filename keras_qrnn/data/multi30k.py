"""Parallel text: Multi30k, any corpus in its layout, or the generated sample."""

import gzip
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from keras_qrnn._files import reading
from keras_qrnn.data import hub, translation_sample

HUB_NAME = "bentrevett/multi30k"
HUB_REVISION = "main"
VALID = ("val", "valid", "validation")
LANGUAGES = ("de", "en")
ADVICE = (
    "Use --data_dir with a directory that holds train.de, train.en, val.de, val.en and "
    "test files, --dataset sample for the generated corpus"
)


@dataclass(frozen=True)
class Pairs:
    """Sentences and their translations.

    Attributes:
        source: sentences.
        target: the translation of each.
    """

    source: list[str]
    target: list[str]

    def __len__(self) -> int:
        return len(self.source)


@dataclass(frozen=True)
class ParallelText:
    """A text in two languages, in splits.

    Attributes:
        name: the source that the text was loaded from.
        languages: of the source and of the target, such as `("de", "en")`.
        train, valid: pairs to train on and to validate with.
        tests: the test sets by name.
        has_one_answer: whether each sentence has one right translation, so that the
            best reachable accuracy is 100 %.
        revision: the commit of the hub's data set. With HF_HUB_OFFLINE the revision
            that was asked for. None if it is not from the hub.
    """

    name: str
    languages: tuple[str, str]
    train: Pairs
    valid: Pairs
    tests: Mapping[str, Pairs] = field(default_factory=dict)
    has_one_answer: bool = False
    revision: str | None = None


def load_parallel_text(
    dataset: str = "multi30k",
    data_dir: str | os.PathLike | None = None,
    languages: tuple[str, str] = LANGUAGES,
    revision: str | None = None,
) -> ParallelText:
    """Loads Multi30k, any corpus in its layout, or the generated sample.

    Args:
        dataset: `"multi30k"`, from `data_dir` or else the Hugging Face hub, or
            `"sample"`, which the package generates.
        data_dir: a directory with `train.de`, `train.en`, `val.de`, `val.en` and test
            sets such as `test.de`, `test.en`: a sentence a line, UTF-8. The files may
            be compressed: `train.de.gz`. The validation split may be named `valid`.
            Each pair of files whose name begins with `test` is a test set.
        languages: of the source and of the target, as in the names of the files and
            of the hub's columns.
        revision: revision of the hub's data set: a branch, a tag or a commit.

    Raises:
        ValueError: for an unknown dataset; for a file that is empty or not UTF-8; for
            two files of a split that have different numbers of lines; for a
            `revision` of text that is not from the hub.
        FileNotFoundError: if the directory or a file is missing.
        ConnectionError: if the hub cannot be reached.
        ImportError: if `datasets` is needed and not installed.
    """
    if dataset not in ("multi30k", "sample"):
        raise ValueError(
            "Argument `dataset` must be 'multi30k' or 'sample'. "
            f"Received: dataset={dataset!r}"
        )
    hub.refuse_revision(revision, dataset != "sample" and data_dir is None)
    for language in languages:
        if not re.fullmatch(r"\w+", language):
            raise ValueError(
                "Argument `languages` must hold names such as 'de' and 'en'. "
                f"Received: languages={languages!r}"
            )
    if languages[0] == languages[1]:
        raise ValueError(
            "Argument `languages` must hold two different languages. "
            f"Received: languages={languages!r}"
        )
    if dataset == "sample":
        if data_dir is not None or languages != LANGUAGES:
            raise ValueError(
                "Arguments `data_dir` and `languages` go with dataset='multi30k'; the "
                f"sample is generated. Received: data_dir={data_dir!r}, "
                f"languages={languages!r}"
            )
        splits = {n: Pairs(*p) for n, p in translation_sample.generate().items()}
        return ParallelText(
            "sample",
            languages,
            splits["train"],
            splits["valid"],
            {"test": splits["test"]},
            has_one_answer=True,
        )
    if data_dir is not None:
        return _from_directory(Path(data_dir), languages)
    return _from_hub(languages, revision or HUB_REVISION)


def _from_directory(directory: Path, languages: tuple[str, str]) -> ParallelText:
    source, target = languages
    expected = (
        f"Argument `data_dir` must hold train.{source}, train.{target}, val.{source} "
        f"(or valid.{source}), val.{target} and, if there are test sets, files such as "
        f"test.{source} and test.{target}, each also as .gz"
    )
    if not directory.is_dir():
        raise FileNotFoundError(f"{expected}. Received: {directory}, no directory")
    # {split: {language: path}}; an uncompressed file goes before a compressed one.
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(directory.iterdir()):
        for language in languages:
            for ending in (f".{language}", f".{language}.gz"):
                if path.name.endswith(ending) and path.is_file():
                    name = path.name.removesuffix(ending)
                    found.setdefault(name, {}).setdefault(language, path)
    valid = next((name for name in VALID if name in found), VALID[0])
    tests = [name for name in found if name.startswith("test")]

    def split(name: str) -> Pairs:
        paths = found.get(name, {})
        for language in languages:
            if language not in paths:
                raise FileNotFoundError(
                    f"{expected}. Received: {directory}, which has no {name}.{language}"
                )
        sides = [_lines(paths[language]) for language in languages]
        if len(sides[0]) != len(sides[1]):
            raise ValueError(
                f"{paths[source]} and {paths[target]} must have equal numbers of "
                f"lines. Received: {len(sides[0])} and {len(sides[1])} lines"
            )
        return Pairs(*sides)

    return ParallelText(
        str(directory),
        languages,
        split("train"),
        split(valid),
        {name: split(name) for name in tests},
    )


def _lines(path: Path) -> list[str]:
    data = path.read_bytes()
    if path.suffix == ".gz":
        with reading(path, "a whole gzip file"):
            data = gzip.decompress(data)
    try:
        text = data.decode("utf-8-sig")  # without the mark of some editors
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    if not text.strip():
        raise ValueError(f"{path} is empty. Expected a sentence on each line")
    # Other line ends of Unicode may stand within a sentence.
    return [line.strip() for line in text.removesuffix("\n").split("\n")]


def _from_hub(languages: tuple[str, str], revision: str) -> ParallelText:
    hub.need_datasets("Multi30k")
    names = ("train", "validation", "test")
    found, commit = hub.load_columns(HUB_NAME, revision, names, languages, ADVICE)
    splits = {
        name: Pairs(*([line.strip() for line in columns[n]] for n in languages))
        for name, columns in found.items()
    }
    return ParallelText(
        HUB_NAME,
        languages,
        splits["train"],
        splits["validation"],
        {"test": splits["test"]},
        revision=commit,
    )
