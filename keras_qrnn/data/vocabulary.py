"""The words of a corpus and their numbers."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import numpy as np

from keras_qrnn._checks import integer, no_single_text
from keras_qrnn._files import atomic_write, reading
from keras_qrnn.data.corpus import fingerprint

EOS = "<eos>"
UNK = "<unk>"


class Vocabulary:
    """The words of a corpus, each with its id.

    Args:
        words: the words in the order of their ids, `<eos>` among them.

    Raises:
        ValueError: if a word occurs twice or `<eos>` is missing.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)
        self._ids = {word: n for n, word in enumerate(self.words)}
        if len(self._ids) != len(self.words) or EOS not in self._ids:
            raise ValueError(
                f"Argument `words` must hold {EOS!r} and each word once. "
                f"Received: {len(self.words)} words, {len(self._ids)} different"
            )

    @classmethod
    def build(cls, lines: Iterable[str], max_size: int = 10001) -> "Vocabulary":
        """The most frequent words of `lines`, and `<eos>`.

        The most frequent one has id 0. Equally frequent words are in alphabetical
        order. `<unk>` is as frequent as the words that it replaces.

        Args:
            lines: sentences, words separated by blanks, usually of the training
                split.
            max_size: the largest number of words. The most frequent words are kept.
                If a word is left out, `<unk>` is among those kept.

        Raises:
            ValueError: if `max_size` is not an integer of at least 2, or `lines` is a
                string.
        """
        max_size = integer("max_size", max_size, 2)
        no_single_text("lines", lines)
        counts: Counter[str] = Counter()
        for line in lines:
            counts.update(line.split())
            counts[EOS] += 1
        words = sorted(counts, key=lambda word: (-counts[word], word))
        if len(words) > max_size:
            others = [word for word in words if word not in (EOS, UNK)]
            kept = {EOS, UNK, *others[: max_size - 2]}
            counts[UNK] += sum(counts[word] for word in words if word not in kept)
            words = sorted(kept, key=lambda word: (-counts[word], word))
        return cls(words or [EOS])

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits: a hash of these words in this order."""
        return fingerprint(self.words)

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: str) -> bool:
        return word in self._ids

    def id_of(self, word: str) -> int:
        """The id of `word`, or the id of `<unk>` if the word is unknown.

        Raises:
            ValueError: if neither the word nor `<unk>` is in the vocabulary.
        """
        found = self._ids.get(word, self._ids.get(UNK))
        if found is None:
            raise ValueError(
                f"The word {word!r} is not in the vocabulary, which has no {UNK!r} "
                "to take its place. Expected a corpus that either marks unknown "
                f"words as {UNK!r} in its training split or needs none."
            )
        return found

    def encode(self, lines: Iterable[str], split: str | None = None) -> np.ndarray:
        """One stream of ids, `<eos>` after each line.

        Args:
            lines: sentences, words separated by blanks.
            split: name of the lines' split, such as `"test"`, for error messages.

        Returns:
            int32 array of shape `(tokens,)`.

        Raises:
            ValueError: if a word is unknown and `<unk>` is not in the vocabulary; if
                `lines` is a string.
        """
        no_single_text("lines", lines)
        eos = np.array([self._ids[EOS]], "int32")
        parts: list[np.ndarray] = []
        for line in lines:
            try:
                parts += [self.ids_of(line), eos]
            except ValueError as error:
                if split is None:
                    raise
                raise ValueError(f"In the {split} split: {error}") from error
        return np.concatenate(parts) if parts else np.zeros(0, "int32")

    def ids_of(self, line: str) -> np.ndarray:
        """The ids of a line's words, without `<eos>`: an int32 array.

        Raises:
            ValueError: if a word is unknown and `<unk>` is not in the vocabulary.
        """
        words = line.split()
        if UNK not in self._ids:
            return np.array([self.id_of(word) for word in words], "int32")
        ids, unknown = self._ids, self._ids[UNK]
        return np.array([ids.get(word, unknown) for word in words], "int32")

    def decode(self, ids: Iterable[int]) -> list[str]:
        """The words of `ids`.

        Raises:
            ValueError: if an id is that of no word.
        """
        return [self._word(n) for n in ids]

    def _word(self, n: int) -> str:
        if not 0 <= n < len(self):
            raise ValueError(
                f"Argument `ids` must be ids from 0 to {len(self) - 1}. Received: {n}"
            )
        return self.words[n]

    def save(self, path: str | os.PathLike) -> None:
        """Writes the words as JSON; `path` is never half-written."""
        with atomic_write(path) as temporary:
            text = json.dumps({"words": self.words}, ensure_ascii=False)
            temporary.write_text(text, "utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike) -> Self:
        """Reads what `save` wrote.

        Raises:
            ValueError: if the file is damaged or holds no vocabulary.
        """
        expected = "a vocabulary: JSON with a list of different `words`"
        with reading(path, expected):
            words = json.loads(Path(path).read_text("utf-8"))["words"]
            if not isinstance(words, list):
                raise TypeError("the words are not a list")
            if not all(isinstance(word, str) for word in words):
                raise TypeError("not all words are strings")
            return cls(words)
