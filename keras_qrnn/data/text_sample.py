"""A generated corpus in Penn Treebank's format. Its true entropy is known.

Sentences are drawn from a right-linear grammar about three topics. The subject
decides whether the verb is singular or plural. Between the two stands a relative
clause with another noun, which distracts. The subject's topic decides the object, up
to a dozen words later. No window reaches so far: a model must carry number and topic
in its state.

The grammar is finite-state. So the probability of each token, given all tokens before
it, is known exactly. The perplexity that follows is a floor: no model can expect to
beat it.
"""

import functools
import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

from keras_qrnn.data.vocabulary import EOS

START, END = "start", "end"
SENTENCES = {"train": 12000, "valid": 1000, "test": 1000}
SEED = 1611

# state -> ((probability, word, next state), ...), probabilities summing to one
Grammar = Mapping[object, tuple[tuple[float, str, object], ...]]

NOUNS = {  # topic -> (singular, plural)
    "money": (("trader", "traders"), ("bank", "banks")),
    "sea": (("sailor", "sailors"), ("captain", "captains")),
    "law": (("judge", "judges"), ("lawyer", "lawyers")),
}
OBJECTS = {
    "money": ("shares", "bonds"),
    "sea": ("ships", "harbors"),
    "law": ("courts", "trials"),
}
VERBS = (("knows", "know"), ("needs", "need"), ("watches", "watch"))
RELATIVE_VERBS = (("likes", "like"), ("meets", "meet"))
ADJECTIVES = ("old", "<unk>", "quiet")


def grammar() -> Grammar:
    """The rules that `generate` draws from. The first state is `START`."""
    subjects = [(topic, number) for topic in NOUNS for number in (0, 1)]
    distractors = [noun for pairs in NOUNS.values() for pair in pairs for noun in pair]
    rules: dict[object, tuple] = {
        START: _choose(1, ((("the"), (*subject, "noun?")) for subject in subjects))
    }
    for topic, number in subjects:

        def at(place: str, topic: str = topic, number: int = number) -> tuple:
            return (topic, number, place)

        def each(
            share: float, words: Iterable[str], place: str, at: Callable = at
        ) -> tuple:
            return _choose(share, ((word, at(place)) for word in words))

        nouns = [pair[number] for pair in NOUNS[topic]]
        verbs = [pair[number] for pair in VERBS]
        relative = [pair[number] for pair in RELATIVE_VERBS]
        rules |= {
            at("noun?"): each(0.3, ADJECTIVES, "noun") + each(0.7, nouns, "clause?"),
            at("noun"): each(1, nouns, "clause?"),
            at("clause?"): each(0.5, ["that"], "clause") + each(0.5, verbs, "object"),
            at("clause"): each(1, relative, "clause the"),
            at("clause the"): each(1, ["the"], "clause noun"),
            at("clause noun"): each(1, distractors, "time?"),
            at("time?"): each(0.3, ["for"], "time N") + each(0.7, verbs, "object"),
            at("time N"): each(1, ["N"], "time days"),
            at("time days"): each(1, ["days"], "verb"),
            at("verb"): each(1, verbs, "object"),
            at("object"): each(1, ["the"], "object noun"),
            at("object noun"): each(1, OBJECTS[topic], "end?"),
            at("end?"): (*each(0.3, ["again"], "end"), (0.7, EOS, END)),
            at("end"): ((1.0, EOS, END),),
        }
    return rules


def _choose(share: float, arrows: Iterable[tuple[str, object]]) -> tuple:
    arrows = tuple(arrows)
    return tuple((share / len(arrows), word, state) for word, state in arrows)


def generate(
    sentences: Mapping[str, int] | None = None, seed: int = SEED
) -> tuple[dict[str, list[str]], dict[str, float]]:
    """The sample corpus: always the same text for the same arguments.

    Args:
        sentences: number of sentences of each split. Defaults to `SENTENCES`.
        seed: of Python's Mersenne Twister, whose `random()` is the same on
            every version and machine.

    Returns:
        The lines of each split, and each split's floor perplexity.
    """
    rules, rng = grammar(), random.Random(seed)
    splits = {
        split: [_sentence(rules, rng) for _ in range(count)]
        for split, count in (sentences or SENTENCES).items()
    }
    return splits, {split: floor_perplexity(rules, splits[split]) for split in splits}


def _sentence(rules: Grammar, rng: random.Random) -> str:
    words: list[str] = []
    state: object = START
    while state != END:
        draw = rng.random()
        # Rounding may keep `draw` above 0 to the end: then the last word is taken.
        for probability, word, following in rules[state]:  # noqa: B007
            draw -= probability
            if draw < 0:
                break
        words.append(word)
        state = following
    return " ".join(words[:-1])


def floor_perplexity(rules: Grammar, lines: Iterable[str]) -> float:
    """Perplexity of `lines` under the grammar itself, `<eos>` counted.

    Sentences are independent. So a token depends only on the words before it in its
    own sentence.

    Raises:
        ValueError: if the grammar cannot have drawn a line.
    """

    @functools.cache
    def log_probabilities(line: str) -> tuple[float, ...]:
        beliefs: Mapping[object, float] = {START: 1.0}
        logs = []
        for word in (*line.split(), EOS):
            probability, beliefs = step(rules, beliefs, word)
            logs.append(math.log(probability))
        return tuple(logs)

    logs = [log for line in lines for log in log_probabilities(line)]
    return math.exp(-math.fsum(logs) / len(logs))


def step(
    rules: Grammar, beliefs: Mapping[object, float], word: str
) -> tuple[float, dict[object, float]]:
    """Reads one word and updates the probability of each state, exactly.

    Args:
        rules: the grammar.
        beliefs: probability of each state given the words so far.
        word: the next word.

    Returns:
        The probability of `word` given the words so far, and the new beliefs.

    Raises:
        ValueError: if the grammar cannot go on with `word`.
    """
    after: defaultdict[object, float] = defaultdict(float)
    for state, belief in beliefs.items():
        for probability, emitted, following in rules.get(state, ()):
            if emitted == word:
                after[following] += belief * probability
    total = math.fsum(after.values())
    if total == 0:
        raise ValueError(f"The grammar has no sentence that goes on with {word!r}")
    return total, {state: mass / total for state, mass in after.items()}


def entropy_rate(rules: Grammar) -> float:
    """The grammar's entropy in nats per token, `<eos>` counted, exactly.

    A complete sentence has one derivation. So its entropy is that of the walk through
    the states: the sum of each state's own entropy times its expected visits.
    """
    entropy = length = 0.0
    arriving: Mapping[object, float] = {START: 1.0}
    while arriving:
        onward: defaultdict[object, float] = defaultdict(float)
        for state, mass in arriving.items():
            for probability, _, following in rules[state]:
                entropy -= mass * probability * math.log(probability)
                length += mass * probability
                if following != END:
                    onward[following] += mass * probability
        arriving = onward
    return entropy / length
