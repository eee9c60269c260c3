"""The continuous cache against a loop that reads like its equation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_qrnn.models import LanguageModel
from keras_qrnn.training import (
    ContinuousCache,
    evaluate_perplexity,
    read_stream,
    tune_cache,
)
from keras_qrnn.training.continuous_cache import ReadStream


def random_stream(tokens, words, seed, units=3):
    rng = np.random.default_rng(seed)
    return ReadStream(
        rng.integers(0, words, tokens),
        rng.normal(size=(tokens, units)).astype("float32"),
        np.log(rng.uniform(0.01, 0.9, tokens)),
    )


def naive_perplexity(stream, size, theta, weight):
    total = 0.0
    for t, target in enumerate(stream.targets):
        past = range(max(0, t - size), t)
        scores = [math.exp(theta * stream.hidden[t] @ stream.hidden[i]) for i in past]
        hits = [s for s, i in zip(scores, past, strict=True)
                if stream.targets[i] == target]  # fmt: skip
        p = math.exp(stream.log_probability[t])
        if scores:
            p = (1 - weight) * p + weight * sum(hits) / sum(scores)
        total -= math.log(p)
    return math.exp(total / len(stream.targets))


@given(
    tokens=st.sampled_from([1, 2, 40, 300, 600]),
    size=st.sampled_from([1, 7, 255, 256, 257, 1000]),
    theta=st.sampled_from([0.1, 1.0, 3.0]),
    weight=st.sampled_from([0.0, 0.1, 0.9]),
    seed=st.integers(0, 99),
)
def test_cache(tokens, size, theta, weight, seed):
    stream = random_stream(tokens, 5, seed)
    got = ContinuousCache(size, theta, weight).perplexity(stream)
    expected = naive_perplexity(stream, size, theta, weight)
    assert math.isclose(got, expected, rel_tol=1e-5)


def test_tuned_cache_is_the_best_of_those_tried():
    stream = random_stream(400, 5, 0)
    best = tune_cache(stream, 100)
    assert best.size == 100
    reached = best.perplexity(stream)
    for theta in (0.1, 0.3, 1.0):
        for weight in (0.05, 0.1, 0.4):
            assert ContinuousCache(100, theta, weight).perplexity(stream) >= reached


@pytest.mark.parametrize("tied", [False, True])
def test_stream_as_the_model_reads_it(tied):
    model = LanguageModel(11, emb_dim=6, units=5, batch_size=2, seed=1, tied=tied)
    model.build()
    ids = np.random.default_rng(0).integers(0, 11, 40).astype("int32")
    expected = evaluate_perplexity(model, ids)
    for steps in (7, 64):
        stream = read_stream(model, ids, steps)
        assert stream.hidden.shape == (39, 6 if tied else 5)
        assert np.array_equal(stream.targets, ids[1:])
        assert math.isclose(stream.perplexity, expected, rel_tol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "`size` must be a positive integer"),
        ({"theta": 0.0}, "`theta` must be positive"),
        ({"weight": 1.0}, r"`weight` must be in \[0, 1\)"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ContinuousCache(**arguments)
