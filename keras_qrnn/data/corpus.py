"""A text in three splits, and the fingerprint of a text."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Corpus:
    """A text in three splits.

    Attributes:
        name: the source that the text was loaded from.
        train, valid, test: sentences, words separated by blanks. They hold no
            `<eos>`: `Vocabulary.encode` adds it.
        floor_perplexity: for each split, its perplexity under the distribution that
            the text was drawn from, `<eos>` counted. No model can expect to go
            below it. None if the distribution is not known.
        revision: the commit of the hub's data set. With HF_HUB_OFFLINE the revision
            that was asked for. None if it is not from the hub.
    """

    name: str
    train: list[str]
    valid: list[str]
    test: list[str]
    floor_perplexity: Mapping[str, float] | None = None
    revision: str | None = None


def fingerprint(*parts: Iterable[str]) -> str:
    """16 hexadecimal digits: a hash of a text, given as parts of lines."""
    text = "\n\n".join("\n".join(part) for part in parts)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
