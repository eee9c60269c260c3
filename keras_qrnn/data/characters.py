"""Characters as the tokens of a translation, in one vocabulary for both languages."""

from collections import Counter
from collections.abc import Iterable

import numpy as np

from keras_qrnn._checks import integer, no_single_text
from keras_qrnn.data.vocabulary import EOS, UNK, Vocabulary

PAD = "<pad>"
SYMBOLS = (PAD, EOS, UNK)  # ids 0, 1, 2


class CharacterVocabulary(Vocabulary):
    """The characters of a text, each with its id.

    Ids 0, 1 and 2 are `<pad>`, `<eos>` and `<unk>`. `<pad>` fills the rows of a batch
    up to one length. `<eos>` ends each sentence. `<unk>` stands for each character that
    is not in the vocabulary.

    Args:
        words: `<pad>`, `<eos>`, `<unk>`, then the characters in the order of their ids.

    Raises:
        ValueError: if the symbols are missing, a character occurs twice or a word has
            more than one character.
    """

    pad, eos, unknown = range(3)

    def __init__(self, words: Iterable[str]) -> None:
        super().__init__(list(words))
        characters = self.words[len(SYMBOLS) :]
        if tuple(self.words[: len(SYMBOLS)]) != SYMBOLS or any(
            len(character) != 1 for character in characters
        ):
            raise ValueError(
                f"Argument `words` must hold {', '.join(SYMBOLS)} and then single "
                f"characters. Received: {self.words[:5]}"
            )

    @classmethod
    def build(cls, lines: Iterable[str], min_count: int = 2) -> "CharacterVocabulary":
        """The characters that `lines` hold, in the order of their code points.

        Args:
            lines: sentences of both languages, usually of the training split.
            min_count: how often a character must occur. With the rarer characters
                `<unk>` is trained.

        Raises:
            ValueError: if `lines` is a string, or `min_count` is negative.
        """
        no_single_text("lines", lines)
        min_count = integer("min_count", min_count, 0)
        counts: Counter[str] = Counter()
        for line in lines:
            counts.update(line)
        kept = sorted(c for c, count in counts.items() if count >= min_count)
        return cls([*SYMBOLS, *kept])

    def encode(self, lines: Iterable[str], split: str | None = None) -> np.ndarray:
        """One stream of ids, one for each character, `<eos>` after each line.

        Args:
            lines: sentences.
            split: not used, because each character has an id.

        Returns:
            int32 array of shape `(characters,)`.

        Raises:
            ValueError: if `lines` is a string.
        """
        no_single_text("lines", lines)
        ids: list[int] = []
        for line in lines:
            ids.extend(self.id_of(character) for character in line)
            ids.append(self.eos)
        return np.array(ids, "int32")

    def encode_each(self, lines: Iterable[str]) -> list[np.ndarray]:
        """The ids of each line: an int32 array that ends with `<eos>`.

        Raises:
            ValueError: if `lines` is a string.
        """
        no_single_text("lines", lines)
        return [self.encode([line]) for line in lines]

    def unknown_in(self, lines: Iterable[str]) -> list[str]:
        """The different characters of `lines` that have no id, sorted."""
        return sorted({c for line in lines for c in line if c not in self})

    def text_of(self, ids: Iterable[int]) -> str:
        """The characters of `ids` up to the first `<eos>`.

        `<pad>` is left out. `<unk>` becomes U+FFFD, the replacement character.

        Raises:
            ValueError: if one of `ids` is that of no character.
        """
        text = []
        for n in ids:
            if n == self.eos:
                break
            if n != self.pad:
                text.append("\ufffd" if n == self.unknown else self._word(n))
        return "".join(text)
