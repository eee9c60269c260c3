"""Word vectors from files: GloVe's and word2vec's text formats, and NumPy arrays."""

import codecs
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from keras_qrnn._files import reading


def read_word_vectors(
    path: str | os.PathLike, words: Iterable[str]
) -> tuple[int, dict[str, np.ndarray]]:
    """The vectors of `words` in a file.

    A word that is not in the file gets the vector of its lower-case form, if the file
    has that. Blank lines of a text file are skipped.

    Args:
        path: a text file in GloVe's format, a word and its numbers a line, separated by
            blanks; or in word2vec's, which has a line before with the numbers of words
            and of dimensions; or a `.npy` file with an array of shape
            `(words, dimensions)`, beside which a file of the same name that ends in
            `.txt` has the words, one a line. All text is UTF-8.
        words: the words to look for.

    Returns:
        The number of dimensions, and for each word that was found its vector, float32
        of shape `(dimensions,)`.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if none of the words is in the file; if a line is broken. The
            numbers of a word that is not looked for are counted, but not read.
    """
    path = Path(path)
    wanted = set(words)
    forms = wanted | {word.lower() for word in wanted}
    read = _from_array if path.suffix == ".npy" else _from_text
    dimensions, found = read(path, forms)
    for word in wanted - found.keys():
        if word.lower() in found:
            found[word] = found[word.lower()]
    if wanted and not wanted & found.keys():
        raise ValueError(
            f"{path} must have vectors of words of the vocabulary. Received: none of "
            f"the {len(wanted)} words is in it"
        )
    return dimensions, {word: found[word] for word in wanted & found.keys()}


def _from_array(path: Path, words: set[str]) -> tuple[int, dict[str, np.ndarray]]:
    with reading(path, "an array of numbers of shape (words, dimensions)"):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if array.ndim != 2 or not np.issubdtype(array.dtype, np.floating):
            raise ValueError(f"shape {array.shape}, dtype {array.dtype}")
    listed = path.with_suffix(".txt")
    if not listed.is_file():
        raise FileNotFoundError(
            f"Beside {path} must be {listed.name} with its words, one a line"
        )
    found: dict[str, np.ndarray] = {}
    count = 0
    for number, line in _lines(listed):
        word = line.rstrip(b"\r\n").decode()
        if number <= len(array) and word in words and word not in found:
            found[word] = _finite(
                np.array(array[number - 1], "float32"), f"{path}, row {number - 1}"
            )
        count = number
    if count != len(array):
        raise ValueError(
            f"{listed} must have a word for each of the {len(array)} rows of {path}. "
            f"Received: {count} words"
        )
    return array.shape[1], found


def _from_text(path: Path, words: set[str]) -> tuple[int, dict[str, np.ndarray]]:
    found: dict[str, np.ndarray] = {}
    dimensions = expected = count = 0
    for number, line in _lines(path):
        fields = line.split()
        if not fields:
            continue
        if number == 1 and len(fields) == 2 and all(map(bytes.isdigit, fields)):
            expected, dimensions = map(int, fields)  # word2vec's first line
            continue
        # Some words of GloVe hold blanks. The first word of the file does not.
        dimensions = dimensions or len(fields) - 1
        where = f"{path}, line {number}"
        if dimensions < 1 or len(fields) < dimensions + 1:
            raise ValueError(
                f"{where} must have a word and {max(dimensions, 1)} numbers. "
                f"Received: {_shown(line)}"
            )
        count += 1
        word = b" ".join(fields[:-dimensions]).decode()
        if word in words and word not in found:
            try:
                with np.errstate(over="ignore"):  # `_finite` refuses it
                    vector = np.array(fields[-dimensions:]).astype("float32")
            except ValueError as error:
                raise ValueError(
                    f"{where} must have a word and {dimensions} numbers. "
                    f"Received: {_shown(line)}"
                ) from error
            found[word] = _finite(vector, where)
    if not count:
        raise ValueError(f"{path} is empty. Expected a word and its numbers a line")
    if expected and count != expected:
        raise ValueError(
            f"{path} must have {expected} words, as its first line says. "
            f"Received: {count}"
        )
    return dimensions, found


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a UTF-8 file, each with its number from 1.

    A byte order mark, which some editors write, is left out.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            try:
                line.decode()
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}, line {number} is not UTF-8 text: {error}"
                ) from error
            yield number, line


def _finite(vector: np.ndarray, where: str) -> np.ndarray:
    if not np.isfinite(vector).all():
        raise ValueError(f"{where} must have finite numbers. Received: {vector}")
    return vector


def _shown(line: bytes) -> str:
    text = line.decode().strip()
    return repr(text if len(text) < 60 else f"{text[:57]}...")
