"""Generated reviews whose best reachable accuracy is known exactly.

A review is one verdict, or two that contradict each other. With "but" between them the
second counts, with "although" the first. A verdict may be negated by "nobody" or
"hardly anybody", many words before its adjective. Between them and at the end stand
words without an opinion. So a model must carry the negation, the verdict and the
conjunction in its state: they are too far apart for a window.

The label is the opinion that counts, but is reversed with probability `NOISE`. No model
can expect to predict which labels are reversed.
"""

import random
from collections.abc import Mapping
from typing import Any

REVIEWS = {"train": 6000, "test": 1000}
NOISE = 0.04
NEGATED = 0.25  # the share of verdicts that are negated
SEED = 1611

SUBJECTS = ("film", "plot", "cast", "music", "ending")
ADJECTIVES = (("dull", "awful", "weak", "boring"), ("good", "superb", "moving", "fun"))
NEGATIONS = (("nobody",), ("hardly", "anybody"))
PEOPLE = (("everybody",), ("my", "friend"))
PLACES = (
    ("in", "this", "town"),
    ("at", "the", "old", "cinema"),
    ("who", "saw", "it", "with", "me", "on", "that", "evening"),
    ("from", "the", "first", "row", "to", "the", "last"),
)
ENDINGS = (
    (),
    ("it", "runs", "for", "two", "hours"),
    ("we", "saw", "it", "in", "may", ",", "on", "a", "rainy", "day"),
)


def generate(
    reviews: Mapping[str, int] | None = None, seed: int = SEED
) -> dict[str, tuple[list[str], list[int], list[int]]]:
    """The sample: always the same reviews for the same arguments.

    Args:
        reviews: number of reviews of each split. Defaults to `REVIEWS`.
        seed: of Python's Mersenne Twister, whose `random()` is the same on every
            version and machine.

    Returns:
        For each split the reviews, words separated by blanks; their labels, 0 for a bad
        review and 1 for a good one; and the opinions that count in the texts. A label
        differs from the opinion where noise reversed it.
    """
    rng = random.Random(seed)
    splits = {}
    for split, count in (reviews or REVIEWS).items():
        texts, labels, opinions = [], [], []
        for _ in range(count):
            text, opinion = review(rng)
            texts.append(" ".join(text))
            opinions.append(opinion)
            labels.append(opinion ^ (rng.random() < NOISE))
        splits[split] = texts, labels, opinions
    return splits


def review(rng: random.Random) -> tuple[list[str], int]:
    """The words of one review, and the opinion that it gives."""
    opinion = int(rng.random() < 0.5)
    conjunction = _choose(rng, (None, None, "but", "although"))
    if conjunction is None:
        words = _verdict(rng, opinion)
    else:
        opinions = (1 - opinion, opinion)
        first, second = opinions if conjunction == "but" else opinions[::-1]
        words = [*_verdict(rng, first), conjunction, *_verdict(rng, second)]
    ending = _choose(rng, ENDINGS)
    return [*words, ".", *ending, *["."] * bool(ending)], opinion


def opinion_of(words: list[str]) -> int:
    """The opinion that the words of a review give, by the rules that wrote them."""
    clause = words
    if "but" in words:
        clause = words[words.index("but") + 1 :]
    elif "although" in words:
        clause = words[: words.index("although")]
    (adjective,) = (w for w in clause if w in ADJECTIVES[0] + ADJECTIVES[1])
    is_negated = "nobody" in clause or "hardly" in clause
    return int((adjective in ADJECTIVES[1]) != is_negated)


def _verdict(rng: random.Random, opinion: int) -> list[str]:
    is_negated = int(rng.random() < NEGATED)
    people = _choose(rng, NEGATIONS if is_negated else PEOPLE)
    return [
        *people,
        *_choose(rng, PLACES),
        "says",
        "the",
        _choose(rng, SUBJECTS),
        "is",
        *["very"] * (rng.random() < 0.5),
        _choose(rng, ADJECTIVES[opinion ^ is_negated]),
    ]


def _choose(rng: random.Random, choices: tuple) -> Any:
    return choices[int(rng.random() * len(choices))]
