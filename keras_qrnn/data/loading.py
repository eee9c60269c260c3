"""Corpora by name."""

import os
from pathlib import Path

from keras_qrnn.data import penn_treebank, sample
from keras_qrnn.data.corpus import Corpus


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
    if data_dir is not None:
        return penn_treebank.from_directory(Path(data_dir))
    return penn_treebank.from_hub()
