"""The softmax over a sample of the words: which are drawn, its loss, its gradients."""

import math

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_qrnn.losses import sampled_token_cross_entropy
from keras_qrnn.models import LanguageModel
from keras_qrnn.models._word_sample import WordSample
from keras_qrnn.training import TrainingOptions
from keras_qrnn.training.optimizers import build_optimizer
from tests.assertions import assert_close

trains = pytest.mark.skipif(
    keras.config.backend() == "numpy", reason="the NumPy backend does not train"
)
RNG = np.random.default_rng(0)
WORDS = 11


def draw(sample):
    return [keras.ops.convert_to_numpy(each) for each in sample.draw()]


@given(st.data())
def test_draws_different_words(data):
    """As many as asked for, the most frequent ones with the largest probabilities."""
    words = data.draw(st.integers(1, 3000), "words")
    size = data.draw(st.integers(1, words), "size")
    sample = WordSample(words, size, seed=data.draw(st.integers(0, 9), "seed"))
    ids, logs = draw(sample)
    assert ids.shape == logs.shape == (size,)
    assert ids[0] >= 0 and ids[-1] < words
    assert (np.diff(ids) > 0).all()
    assert (np.diff(logs) <= 1e-6).all() and (logs <= 0).all()
    always = int((logs == 0).sum())
    assert (ids[:always] == np.arange(always)).all()
    if size == words:
        assert always == words


@pytest.mark.parametrize("size", [1, 4])
def test_probabilities_are_those_of_the_draws(size):
    """They fall as 1 / (k + 1) from the first word that is not always drawn."""
    sample = WordSample(WORDS, size, seed=0)
    counts, logs, draws = np.zeros(WORDS), np.zeros(WORDS), 300
    for _ in range(draws):
        ids, found = draw(sample)
        counts[ids] += 1
        logs[ids] = found
    assert counts.all()
    probabilities = np.exp(logs)
    assert math.isclose(probabilities.sum(), size, rel_tol=1e-6)
    shares = probabilities * np.arange(1, WORDS + 1)
    rarer = probabilities < 1
    assert np.allclose(shares[rarer], shares[-1], rtol=1e-5)
    deviations = np.sqrt(draws * probabilities * (1 - probabilities))
    assert (np.abs(counts - draws * probabilities) <= 4 * deviations).all()


def test_loss_against_loops():
    """The target counts once, each other sampled word 1 / probability times."""
    logits = RNG.normal(size=(6, WORDS)).astype("float32")
    targets = np.array([0, 3, 3, 10, 7, 1], "int32")
    sample = np.array([0, 3, 4, 9], "int32")
    probabilities = np.array([1.0, 0.6, 0.5, 0.1], "float32")
    expected = []
    for row, target in zip(logits.astype("float64"), targets, strict=True):
        total = math.exp(row[target])
        for word, probability in zip(sample, probabilities, strict=True):
            if word != target:
                total += math.exp(row[word]) / probability
        expected.append(math.log(total) - row[target])
    got = sampled_token_cross_entropy(
        np.take_along_axis(logits, targets[:, None], 1)[:, 0],
        logits[:, sample],
        targets,
        sample,
        np.log(probabilities),
    )
    assert_close("cross-entropy", keras.ops.convert_to_numpy(got), np.array(expected))


def test_loss_of_a_sample_that_is_the_target():
    """No other word is left: the estimated softmax is 1."""
    one = np.ones((1, 1), "float32")
    targets = np.zeros(1, "int32")
    got = sampled_token_cross_entropy(one[0], one, targets, targets, np.zeros(1, "f"))
    assert keras.ops.convert_to_numpy(got) == 0


def tiny(sampled_words, **changes):
    sizes = {"emb_dim": 6, "units": 5, "batch_size": 2, "layers": 1, "seed": 1}
    sizes |= {"zoneout": 0.0, "dropout": 0.0}
    model = LanguageModel(WORDS, sampled_words=sampled_words, **(sizes | changes))
    model.build()
    return model


def batch():
    x = RNG.integers(0, WORDS, (2, 7)).astype("int32")
    weights = np.ones((2, 7), "float32")
    weights[1, 4:] = 0
    return x, np.roll(x, -1, axis=1), weights


@trains
@pytest.mark.parametrize(("dtype", "tied"), [("float32", True), ("float64", False)])
def test_all_words_sampled_is_the_softmax(dtype, tied):
    """The loss, the perplexity and the step of each weight, with a clip."""
    x, y, weights = batch()
    bias = RNG.normal(size=WORDS)
    logs, steps = [], []
    for sampled_words in (0, WORDS):
        keras.utils.set_random_seed(0)
        model = tiny(sampled_words, tied=tied, dtype=dtype)
        model.logits_bias.assign(bias)
        before = model.get_weights()
        options = TrainingOptions(learning_rate=0.1, grad_clip=0.5)
        model.compile(build_optimizer(options))
        history = model.fit(x, y, 2, verbose=0, sample_weight=weights).history
        logs.append([history["loss"][0], history["perplexity"][0]])
        steps.append([a - b for a, b in zip(model.get_weights(), before, strict=True)])
    assert_close("loss and perplexity", np.array(logs[1]), np.array(logs[0]))
    for weight, expected, got in zip(model.weights, *steps, strict=True):
        assert np.abs(expected).max() > 0
        assert_close(f"step of {weight.path}", got, expected)


@trains
@pytest.mark.parametrize(
    ("dtype", "tied"), [("float32", False), ("mixed_bfloat16", True)]
)
def test_the_estimated_sum_is_right_on_average(dtype, tied):
    """The mean of `exp(loss)`, the estimated sum over the target's term, is the sum."""
    x, _, _ = batch()
    model = tiny(4, tied=tied, dtype=dtype)
    model.logits_bias.assign(RNG.normal(size=WORDS))
    targets = keras.ops.convert_to_tensor(np.roll(x, -1, axis=1))
    hidden = model.hidden(x)
    logits = keras.ops.convert_to_numpy(model.softmax_logits(hidden)).astype("float64")
    exact = np.exp(logits).sum(-1) / np.exp(
        np.take_along_axis(logits, np.roll(x, -1, axis=1)[..., None], -1)[..., 0]
    )
    losses = [
        keras.ops.convert_to_numpy(model.sampled_cross_entropy(hidden, targets))
        for _ in range(150)
    ]
    found = np.exp(np.array(losses, "float64"))
    assert found.std(0).max() > 0.1  # each draw is another estimate
    errors = np.abs(found.mean(0) - exact)
    assert (errors <= 4 * found.std(0) / math.sqrt(len(losses)) + 0.02 * exact).all()


@trains
def test_targets_that_are_no_words():
    """Their loss is NaN, as without a sample, and no other target's."""
    model = tiny(4)
    x, _, _ = batch()
    targets = x.copy()
    targets[0, 2], targets[1, 5] = -1, WORDS
    losses = model.sampled_cross_entropy(
        model.hidden(x), keras.ops.convert_to_tensor(targets)
    )
    assert (np.isnan(keras.ops.convert_to_numpy(losses)) == (targets != x)).all()


@trains
def test_each_step_draws_other_words():
    model = tiny(3)
    model.compile(keras.optimizers.SGD(0.0))
    x, y, _ = batch()
    history = model.fit(x, y, 2, epochs=8, verbose=0).history
    assert len(set(history["loss"])) > 4  # nothing else changes


@trains
def test_trains_and_evaluates_with_all_words():
    """Words that are seldom drawn are learned too, and evaluation has no sample."""
    model = tiny(3, units=12, emb_dim=12)
    model.compile(keras.optimizers.Adam(0.03))
    x = np.tile(np.arange(WORDS - 1, -1, -1, dtype="int32"), 4)[None].repeat(2, 0)
    y = np.roll(x, -1, axis=1)
    model.fit(x, y, batch_size=2, epochs=60, verbose=0)
    model.reset_state()
    first = model.evaluate(x, y, batch_size=2, verbose=0, return_dict=True)
    model.reset_state()
    again = model.evaluate(x, y, batch_size=2, verbose=0, return_dict=True)
    assert first["perplexity"] == again["perplexity"] < 2
    again = model.with_all_words()  # what a run keeps
    assert again.get_config()["sampled_words"] == 0
    with pytest.raises(ValueError, match="`sampled_words` is a positive integer"):
        again.sampled_cross_entropy(again.hidden(x), y)
    assert np.array_equal(*(each.get_weights()[0] for each in (model, again)))
    model.reset_state()
    assert model.predict(x, batch_size=2, verbose=0).shape == (2, 4 * WORDS, WORDS)
