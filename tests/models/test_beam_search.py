"""Beam search against an exhaustive search and against a search in plain Python."""

import itertools
import math

import keras
import numpy as np
import pytest
from keras import ops

from keras_qrnn.models.beam_search import BeamSearch

END, START = 0, 3
TOKENS = 3  # <eos>, a, b
STATES = 41


def tables(sentences, seed=0, spread=2.0):
    """Random log-probabilities of the next token, for each sentence and state."""
    logits = np.random.default_rng(seed).normal(0, spread, (sentences, STATES, TOKENS))
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def following(state, token):
    return (5 * state + 3 * token + 1) % STATES


def step(tokens, states, memory):
    """A model whose state depends on all tokens: `states` must follow the beam."""
    (state,) = states
    state = (5 * state + 3 * tokens + 1) % STATES
    index = ops.broadcast_to(state[:, None, None], (state.shape[0], 1, TOKENS))
    return ops.take_along_axis(memory["table"], index, axis=1)[:, 0], [state]


def log_probability(table, ids):
    state, total = 0, 0.0
    for last, token in itertools.pairwise([START, *ids]):
        state = following(state, last)
        total += table[state, token]
    return total


def rank(total, length, target, alpha):
    factors = [(t + alpha) / t for t in range(length, target + 1)]
    return total * math.prod(factors)


def exhaustive(table, target, alpha, steps):
    """All sequences that end within `steps` tokens, best first."""
    found = []
    for length in range(1, steps + 1):
        for ids in itertools.product(range(1, TOKENS), repeat=length - 1):
            total = log_probability(table, [*ids, END])
            found.append((rank(total, length, target, alpha), list(ids)))
    return sorted(found, key=lambda each: -each[0])


def beam_reference(table, target, alpha, steps, beam):
    """The best sequence of a beam, one hypothesis at a time."""
    live, done = [([], 0.0)], []
    for length in range(1, steps + 1):
        further = [
            ([*ids, token], log_probability(table, [*ids, token]))
            for ids, _ in live
            for token in range(TOKENS)
        ]
        ranked = [(rank(t, length, target, alpha), ids, t) for ids, t in further]
        best = sorted(done + ranked, key=lambda each: -each[0])[:beam]
        done = [each for each in best if each[1][-1] == END]
        live = [(ids, t) for _, ids, t in best if ids[-1] != END]
        if done and (not live or done[0][0] >= max(t for _, t in live)):
            break
    if done:
        return done[0][1][:-1], done[0][0]
    return best[0][1], best[0][0]


def search(table, targets, beam, alpha, steps):
    sentences = len(table)
    beams = BeamSearch(step, beam, alpha, start=START, end=END)
    states = [ops.zeros((sentences,), "int32")]
    memory = {"table": ops.convert_to_tensor(table, "float32")}
    return beams(states, memory, np.array(targets), np.broadcast_to(steps, sentences))


@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.one_backend
def test_exhaustive_with_other_ranks(alpha):
    test_exhaustive(alpha)


def test_exhaustive(alpha=0.6):
    """A beam for all sequences finds the best of each sentence, and their order."""
    targets, steps = [2, 4, 9], 4
    table = tables(3)
    found = search(table, targets, 2**5, alpha, steps)
    for n, hypotheses in enumerate(found):
        expected = exhaustive(table[n], targets[n], alpha, steps)
        assert hypotheses[0].ids == expected[0][1]
        for hypothesis in hypotheses:
            if not hypothesis.ended:
                continue
            total = log_probability(table[n], [*hypothesis.ids, END])
            length = len(hypothesis.ids) + 1
            np.testing.assert_allclose(hypothesis.log_probability, total, rtol=1e-5)
            np.testing.assert_allclose(
                hypothesis.score, rank(total, length, targets[n], alpha), rtol=1e-5
            )
        scores = [each.score for each in hypotheses if each.ended]
        assert scores == sorted(scores, reverse=True)


@pytest.mark.one_backend
@pytest.mark.parametrize("alpha", [1e6, 1e30, 1e38])
def test_a_very_large_alpha(alpha):
    """The factor of a rank would be infinite, and a rank no number."""
    found = search(tables(3), [8] * 3, 4, alpha, 12)
    assert all(np.isfinite(each[0].score) and each[0].ended for each in found)


@pytest.mark.one_backend
def test_length_normalization_decides():
    """Here the likeliest sequence is short, and the best one by rank is longer."""
    table = tables(40, seed=3, spread=0.5)
    plain = search(table, [8] * 40, 2**5, 0.0, 4)
    normalized = search(table, [8] * 40, 2**5, 0.9, 4)
    lengths = [[len(each[0].ids) for each in found] for found in (plain, normalized)]
    assert sum(lengths[1]) > sum(lengths[0])


@pytest.mark.one_backend
@pytest.mark.parametrize("beam", [1, 2, 3])
def test_narrow_beams(beam):
    """Values and tokens of a search in plain Python; some sentences do not end."""
    targets, steps = list(range(1, 13)), [9, 5, 2, 1] * 3
    table = tables(12, seed=beam)
    table[:4, :, END] = -30.0
    found = search(table, targets, beam, 0.6, steps)
    for n, hypotheses in enumerate(found):
        ids, score = beam_reference(table[n], targets[n], 0.6, steps[n], beam)
        assert hypotheses[0].ids == ids
        np.testing.assert_allclose(hypotheses[0].score, score, rtol=1e-4)
        assert len(hypotheses) == beam
    for hypotheses, longest in zip(found[:3], steps, strict=False):
        assert not hypotheses[0].ended and len(hypotheses[0].ids) == longest
    assert any(each[0].ended for each in found)


@pytest.mark.one_backend
@pytest.mark.parametrize("beam", [2, 3, 8])
def test_other_sentences_of_the_batch(beam):
    """A sentence alone has the same hypotheses, of all ranks."""
    targets, steps = np.arange(1, 13), np.array([9, 5, 2, 1] * 3)
    table = tables(12, seed=beam)
    table[0, :, END] = -30.0  # the search goes on for this one
    table[4:6] = -np.log(TOKENS)  # equal ranks
    together = search(table, targets, beam, 0.6, steps)
    for n, hypotheses in enumerate(together):
        one = slice(n, n + 1)
        (alone,) = search(table[one], targets[one], beam, 0.6, steps[one])
        assert alone == hypotheses
    assert len({len(each[0].ids) for each in together}) > 2


@pytest.mark.one_backend
def test_greedy():
    table = tables(5, seed=7)
    for n, hypotheses in enumerate(search(table, [4] * 5, 1, 0.6, 6)):
        ids, state, last = [], 0, START
        while last != END and len(ids) < 6:
            state = following(state, last)
            last = int(table[n, state].argmax())
            ids.append(last)
        assert hypotheses[0].ids == (ids[:-1] if last == END else ids)


def test_forbidden_tokens_and_present_values():
    variable = keras.Variable(np.log([[0.1, 0.3, 0.6]]).astype("float32"))

    def constant(tokens, states, memory):
        return ops.repeat(ops.convert_to_tensor(variable), 2, axis=0), states

    beams = BeamSearch(
        constant, 1, start=START, end=END, forbidden=(2,), variables=[variable]
    )
    run = [ops.zeros((2, 1))], [], np.array([1, 1]), np.array([3, 3])
    assert [each[0].ids for each in beams(*run)] == [[1, 1, 1]] * 2
    variable.assign(np.log([[0.6, 0.3, 0.1]]).astype("float32"))
    assert [each[0].ids for each in beams(*run)] == [[]] * 2


@pytest.mark.one_backend
@pytest.mark.parametrize("beam", [0, -1, 1.5, True])
def test_bad_beam(beam):
    with pytest.raises(ValueError, match=f"`beam` must be a positive integer.*{beam}"):
        BeamSearch(step, beam, start=START, end=END)


@pytest.mark.one_backend
@pytest.mark.parametrize("alpha", [-0.1, math.inf, math.nan])
def test_bad_alpha(alpha):
    with pytest.raises(ValueError, match="`alpha`"):
        BeamSearch(step, 2, alpha, start=START, end=END)


@pytest.mark.one_backend
def test_bad_steps():
    with pytest.raises(ValueError, match="`max_steps`"):
        search(tables(1), [3], 2, 0.6, 0)


@pytest.mark.one_backend
def test_a_broken_model_is_an_error():
    """One that gives NaN for a state that is reached."""
    table = tables(1)
    first = following(0, START)
    table[0, first, 1] = 9.0  # "a" comes first
    assert search(table, [3], beam=2, alpha=0.6, steps=4)
    table[0, following(first, 1)] = np.nan
    with pytest.raises(ValueError, match=r"must give numbers.*Received: nan"):
        search(table, [3], beam=2, alpha=0.6, steps=4)
