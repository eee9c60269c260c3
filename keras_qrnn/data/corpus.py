"""A text in three splits."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


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
