import hashlib
import importlib.util
import os
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from keras_qrnn.data import sample

SPLITS = ("train", "valid", "test")
HUB_NAME = "ptb-text-only/ptb_text_only"
# The repository itself is a loading script, which datasets >= 4 refuses.
HUB_REVISION = "refs/convert/parquet"
HUB_TIMEOUT = 10  # seconds


@dataclass(frozen=True)
class Corpus:
    """A text in three splits.

    Attributes:
        name: what it was loaded from.
        train, valid, test: sentences, words separated by blanks. `<eos>` is not
            among them: `Vocabulary.encode` adds it.
        floor_perplexity: for each split the perplexity of the distribution that
            the text was drawn from, `<eos>` counted, which no model can expect
            to go below; None where it is not known.
    """

    name: str
    train: list[str]
    valid: list[str]
    test: list[str]
    floor_perplexity: Mapping[str, float] | None = None


def fingerprint(*parts: Iterable[str]) -> str:
    """16 hexadecimal digits that tell one text, in parts of lines, from another."""
    text = "\n\n".join("\n".join(part) for part in parts)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def load_corpus(
    dataset: str = "ptb", data_dir: str | os.PathLike | None = None
) -> Corpus:
    """Loads Penn Treebank, any corpus in its format, or the embedded sample.

    Args:
        dataset: `"ptb"`, from `data_dir` or else the Hugging Face hub, or
            `"sample"`, which the package generates.
        data_dir: a directory with `train.txt`, `valid.txt` and `test.txt`, a
            sentence a line, UTF-8.

    Returns:
        A `Corpus`.

    Raises:
        ValueError: for an unknown dataset, or a file that is empty or not UTF-8.
        FileNotFoundError: if the directory or a split of it is missing.
        ConnectionError: if the hub cannot be reached.
        ImportError: if `datasets` is not installed.
    """
    if dataset not in ("ptb", "sample"):
        raise ValueError(
            "Argument `dataset` must be 'ptb' or 'sample'. "
            f"Received: dataset={dataset!r}"
        )
    if dataset == "sample":
        if data_dir is not None:
            raise ValueError(
                "Argument `data_dir` goes with dataset='ptb'; the sample is "
                f"generated. Received: data_dir={str(data_dir)!r}"
            )
        splits, floor = sample.generate()
        return Corpus("sample", **splits, floor_perplexity=floor)
    if importlib.util.find_spec("datasets") is None:
        raise ImportError(
            "Penn Treebank is loaded with Hugging Face `datasets`, which is not "
            "installed: pip install '.[lm]' in a checkout of keras-qrnn"
        )
    if data_dir is not None:
        return _from_directory(Path(data_dir))
    return _from_hub()


def _from_directory(directory: Path) -> Corpus:
    from datasets import Dataset

    if not directory.is_dir():
        raise FileNotFoundError(
            "Argument `data_dir` must be a directory with train.txt, valid.txt and "
            f"test.txt. Received: {directory}, which does not exist"
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
            text = path.read_text("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text: {error}") from error
        if not text.strip():
            raise ValueError(f"{path} is empty. Expected a sentence on each line")
        # In memory: `datasets`' text builder would copy the file into its cache.
        table = Dataset.from_dict({"sentence": text.removesuffix("\n").split("\n")})
        splits[split] = list(table["sentence"])
    return Corpus(str(directory), **splits)


def _from_hub() -> Corpus:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError
    from huggingface_hub import constants

    revision = urllib.parse.quote(HUB_REVISION, safe="")
    url = f"{constants.ENDPOINT}/api/datasets/{HUB_NAME}/revision/{revision}"
    try:
        if not constants.HF_HUB_OFFLINE:
            # `datasets` tries again and again for minutes: one request first says
            # whether that is worth it.
            urllib.request.urlopen(url, timeout=HUB_TIMEOUT).close()
        found = load_dataset(HUB_NAME, revision=HUB_REVISION)
    except (OSError, DatasetsError) as error:
        raise ConnectionError(
            f"Could not load {HUB_NAME} ({HUB_REVISION}) from {constants.ENDPOINT}: "
            f"{type(error).__name__}: {error}\n"
            "Use --data_dir with a directory that holds train.txt, valid.txt and "
            "test.txt, --dataset sample for the embedded corpus, or HF_HUB_OFFLINE=1 "
            "for a copy that was downloaded before."
        ) from error
    return Corpus(
        HUB_NAME,
        train=list(found["train"]["sentence"]),
        valid=list(found["validation"]["sentence"]),
        test=list(found["test"]["sentence"]),
    )
