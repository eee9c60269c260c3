"""A generated German-English text. Each sentence has one right translation.

A sentence has a subject, a verb and an object, each noun with or without an adjective.
Three rules make a translation that goes word by word wrong:

- Order. After `heute` the verb stands before the subject. In the future tense it
  stands at the end.
- Agreement. The verb's ending follows the number of the subject, wherever that stands.
- Case. The German article and adjective differ between subject and object. The English
  ones do not.

The English sentence is a function of the German one, so a model can reach 100 %.
"""

import itertools
import random
from collections.abc import Mapping

SENTENCES = {"train": 4000, "valid": 200, "test": 200}
SEED = 1611

# Singular, then plural: article of a subject, article of an object, German noun,
# English noun.
NOUNS = (
    (("der", "den", "hund", "dog"), ("die", "die", "hunde", "dogs")),
    (("die", "die", "frau", "woman"), ("die", "die", "frauen", "women")),
    (("das", "das", "kind", "child"), ("die", "die", "kinder", "children")),
    (("der", "den", "wolf", "wolf"), ("die", "die", "wölfe", "wolves")),
)
ADJECTIVES = (("alt", "old"), ("rot", "red"))
# German singular and plural, which is also the infinitive; English singular and plural.
VERBS = (("sieht", "sehen", "sees", "see"), ("malt", "malen", "paints", "paint"))


def generate(
    sentences: Mapping[str, int] | None = None, seed: int = SEED
) -> dict[str, tuple[list[str], list[str]]]:
    """The sample: always the same text for the same arguments.

    Args:
        sentences: number of sentences of each split. Defaults to `SENTENCES`.
        seed: of Python's Mersenne Twister.

    Returns:
        For each split the German sentences and their translations. No sentence occurs
        twice, so those of the tests are new to a model.

    Raises:
        ValueError: if there are fewer different sentences than that.
    """
    sentences = sentences or SENTENCES
    pairs = all_pairs()
    total = sum(sentences.values())
    if total > len(pairs):
        raise ValueError(
            f"Argument `sentences` must ask for at most {len(pairs)} sentences. "
            f"Received: {total}"
        )
    drawn = iter(random.Random(seed).sample(pairs, total))
    splits = {}
    for split, count in sentences.items():
        chosen = list(itertools.islice(drawn, count))
        splits[split] = ([pair[0] for pair in chosen], [pair[1] for pair in chosen])
    return splits


def all_pairs() -> list[tuple[str, str]]:
    """Each sentence of the sample's language with its translation."""
    phrases = list(
        itertools.product(range(len(NOUNS)), (0, 1), (None, *range(len(ADJECTIVES))))
    )
    return [
        _pair(*parts)
        for parts in itertools.product(
            phrases, phrases, range(len(VERBS)), (False, True), (False, True)
        )
    ]


def _pair(
    subject: tuple, object_: tuple, verb: int, future: bool, today: bool
) -> tuple[str, str]:
    german, english = zip(_phrase(subject, 0), _phrase(object_, 1), strict=True)
    many = subject[1]
    if future:
        finite, rest = ("wird", "werden")[many], VERBS[verb][1]
        action = f"will {VERBS[verb][3]}"
    else:
        finite, rest = VERBS[verb][many], ""
        action = VERBS[verb][2 + many]
    first = [finite, german[0]] if today else [german[0], finite]
    source = ["heute"] * today + [*first, german[1], rest]
    target = ["today"] * today + [english[0], action, english[1]]
    return " ".join(filter(None, source)), " ".join(target)


def _phrase(phrase: tuple, case: int) -> tuple[str, str]:
    """A noun with its article in German and English; case 0 is the subject's."""
    noun, many, adjective = phrase
    *articles, german, english = NOUNS[noun][many]
    article = articles[case]
    if adjective is None:
        return f"{article} {german}", f"the {english}"
    stem, translation = ADJECTIVES[adjective]
    ending = "en" if many or article == "den" else "e"
    return f"{article} {stem}{ending} {german}", f"the {translation} {english}"
