"""Sentences for a language model: Penn Treebank, any corpus in its format, a sample."""

import os
from pathlib import Path

from keras_qrnn.data import hub, text_sample
from keras_qrnn.data.corpus import Corpus

SPLITS = ("train", "valid", "test")
HUB_NAME = "ptb-text-only/ptb_text_only"
# The repository itself is a loading script, which datasets >= 4 refuses.
HUB_REVISION = "refs/convert/parquet"
ADVICE = (
    "Use --data_dir with a directory that holds train.txt, valid.txt and test.txt, "
    "--dataset sample for the generated corpus"
)


def load_corpus(
    dataset: str = "ptb",
    data_dir: str | os.PathLike | None = None,
    revision: str | None = None,
) -> Corpus:
    """Loads Penn Treebank, any corpus in its format, or the generated sample.

    Args:
        dataset: `"ptb"`, from `data_dir` or else the Hugging Face hub, or `"sample"`,
            which the package generates.
        data_dir: a directory with `train.txt`, `valid.txt` and `test.txt`, a sentence
            a line, UTF-8.
        revision: revision of the hub's data set: a branch, a tag or a commit.

    Raises:
        ValueError: for an unknown dataset, a file that is empty or not UTF-8, or a
            `revision` of data that are not from the hub.
        FileNotFoundError: if the directory or a file is missing.
        ConnectionError: if the hub cannot be reached.
        ImportError: if `datasets` is needed and not installed.
    """
    if dataset not in ("ptb", "sample"):
        raise ValueError(
            "Argument `dataset` must be 'ptb' or 'sample'. "
            f"Received: dataset={dataset!r}"
        )
    hub.refuse_revision(revision, dataset != "sample" and data_dir is None)
    if dataset == "sample":
        if data_dir is not None:
            raise ValueError(
                "Argument `data_dir` goes with dataset='ptb'; the sample is "
                f"generated. Received: data_dir={str(data_dir)!r}"
            )
        splits, floor = text_sample.generate()
        return Corpus(
            "sample",
            splits["train"],
            splits["valid"],
            splits["test"],
            floor_perplexity=floor,
        )
    if data_dir is not None:
        return _from_directory(Path(data_dir))
    return _from_hub(revision)


def _from_directory(directory: Path) -> Corpus:
    """The corpus in `train.txt`, `valid.txt` and `test.txt`, a sentence a line.

    Args:
        directory: of the three files, in UTF-8, with or without a byte order mark.

    Raises:
        ValueError: if a file is empty or not UTF-8.
        FileNotFoundError: if the directory or a file is missing.
        ImportError: if `datasets` is not installed.
    """
    hub.need_datasets("Penn Treebank")
    from datasets import Dataset

    if not directory.is_dir():
        what = "is a file" if directory.exists() else "does not exist"
        raise FileNotFoundError(
            "Argument `data_dir` must be a directory with train.txt, valid.txt and "
            f"test.txt. Received: {directory}, which {what}"
        )
    splits = {}
    for split in SPLITS:
        path = directory / f"{split}.txt"
        if not path.is_file():
            raise FileNotFoundError(
                "Argument `data_dir` must hold train.txt, valid.txt and test.txt. "
                f"Received: {directory}, which has no {path.name}"
            )
        try:
            text = path.read_text("utf-8-sig")  # without the mark of some editors
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text: {error}") from error
        if not text.strip():
            raise ValueError(f"{path} is empty. Expected a sentence on each line")
        # In memory: `datasets`' text builder would copy the file into its cache.
        table = Dataset.from_dict({"sentence": text.removesuffix("\n").split("\n")})
        splits[split] = list(table["sentence"])
    return Corpus(str(directory), **splits)  # type: ignore[arg-type]


def _from_hub(revision: str | None = None) -> Corpus:
    """Penn Treebank from the Hugging Face hub.

    Args:
        revision: of the data set. Defaults to `HUB_REVISION`.

    Raises:
        ConnectionError: if the hub cannot be reached.
        ImportError: if `datasets` is not installed.
    """
    hub.need_datasets("Penn Treebank")
    splits = ("train", "validation", "test")
    found, commit = hub.load_columns(
        HUB_NAME, revision or HUB_REVISION, splits, ["sentence"], ADVICE
    )
    return Corpus(
        HUB_NAME,
        train=found["train"]["sentence"],
        valid=found["validation"]["sentence"],
        test=found["test"]["sentence"],
        revision=commit,
    )
