"""Masks: the values of masked steps change no output, state or gradient."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_qrnn import QRNN
from keras_qrnn.ops.equations import GATES
from tests.assertions import assert_close
from tests.gradients import value_and_gradients

BATCH, TIME, FEATURES, UNITS = 3, 5, 3, 4
RNG = np.random.default_rng(0)
X = RNG.normal(size=(BATCH, TIME, FEATURES)).astype("float32")
HOLES = np.array([[1, 0, 1, 1, 0], [0, 0, 1, 0, 1], [1, 1, 1, 1, 1]], bool)
differentiable = pytest.mark.skipif(
    keras.config.backend() == "numpy", reason="the NumPy backend has no gradients"
)


@st.composite
def dirty_inputs(draw):
    """A layer's configuration, a mask, and inputs with and without what it hides."""
    config = {
        "window": draw(st.sampled_from([1, 3])),
        "pooling": draw(st.sampled_from(["f", "fo", "ifo"])),
        "go_backwards": draw(st.booleans()),
        "zero_output_for_mask": draw(st.booleans()),
        "zoneout": draw(st.sampled_from([0.0, 0.3])),
        "dropout": draw(st.sampled_from([0.0, 0.3])),
        "activation": draw(st.sampled_from(["tanh", "relu"])),
        "seed": 3,
        "padding": draw(st.sampled_from(["causal", "same"])),
    }
    mask = draw(st.lists(st.booleans(), min_size=BATCH * TIME, max_size=BATCH * TIME))
    mask = np.array(mask).reshape(BATCH, TIME)
    garbage = draw(st.sampled_from([np.nan, np.inf, -np.inf, 1e38]))
    fill = [np.where(mask[..., None], X, value) for value in (0, garbage)]
    return config, mask, *(x.astype("float32") for x in fill)


@settings(max_examples=12)
@given(dirty_inputs(), st.booleans())
def test_a_masked_step_reaches_no_value(case, training):
    config, mask, clean, dirty = case
    results = []
    for x in (clean, dirty):
        keras.utils.set_random_seed(1)
        layer = QRNN(
            UNITS, **config, return_sequences=True, return_state=True,
            stateful=config["padding"] == "causal",
        )  # fmt: skip
        results.append(layer(x, mask=mask, training=training))
        results[-1] += tuple(ops.convert_to_numpy(each) for each in layer.kept)
        results[-1] += tuple(layer.compute_gates(x, mask=mask))
    for n, (expected, got) in enumerate(zip(*results, strict=True)):
        assert_close(f"result {n}", got, expected, 0)


@differentiable
@settings(max_examples=5)
@given(dirty_inputs())
def test_a_masked_step_reaches_no_gradient(case):
    config, mask, clean, dirty = case
    layer = QRNN(UNITS, **config, return_sequences=True, return_state=True)
    layer.build(clean.shape)
    weights = [ops.convert_to_numpy(weight) for weight in layer.weights]
    seeds = [ops.convert_to_tensor(v) for v in layer.non_trainable_variables]

    def loss(x, *weights):
        results, _ = layer.stateless_call(weights, seeds, x, mask=mask, training=True)
        return sum(ops.sum(ops.square(result)) for result in results)

    expected = value_and_gradients(loss, [clean, *weights])
    got = value_and_gradients(loss, [dirty, *weights])
    assert_close("loss", got[0], expected[0], 0)
    for name, a, b in zip(("x", "kernel", "bias"), got[1], expected[1], strict=True):
        assert_close(f"gradient by {name}", a, b, 0)
    assert not got[1][0][~mask].any()


@pytest.mark.parametrize("padding", ["causal", "same"])
@pytest.mark.parametrize("return_sequences", [True, False])
def test_a_masked_step_reaches_nothing_through_bidirectional(return_sequences, padding):
    inner = QRNN(
        UNITS, 3, padding=padding, return_sequences=return_sequences, return_state=True
    )
    layer = keras.layers.Bidirectional(inner)
    clean, dirty = (np.where(HOLES[..., None], X, n) for n in (0, np.nan))
    clean, dirty = (x.astype("float32") for x in (clean, dirty))
    for n, (got, expected) in enumerate(
        zip(layer(dirty, mask=HOLES), layer(clean, mask=HOLES), strict=True)
    ):
        assert_close(f"result {n}", got, expected, 0)


def test_the_last_output_alone_is_that_of_all_outputs():
    """Also of a sequence without a valid step, with a state and a previous output."""
    mask = HOLES * np.array([[1], [1], [0]], bool)
    layer = QRNN(UNITS, 3)
    given = [RNG.normal(size=(BATCH, UNITS)).astype("float32") for _ in range(2)]
    options = {"initial_state": given[0], "previous_output": given[1], "mask": mask}
    for zero_output_for_mask in (False, True):
        layer.zero_output_for_mask = zero_output_for_mask
        layer.return_sequences = True
        expected = layer(X, **options)[:, -1]
        layer.return_sequences = False
        assert_close("outputs", layer(X, **options), expected, 0)


@pytest.mark.parametrize("pooling", ["f", "fo", "ifo"])
@pytest.mark.parametrize("go_backwards", [False, True])
def test_gates_of_masked_sequences(pooling, go_backwards):
    """As of the sequence without masked steps. At these f is 1, other gates 0."""
    padding = "same" if pooling == "fo" else "causal"
    layer = QRNN(UNITS, 3, pooling, go_backwards=go_backwards, padding=padding)
    gates = layer.compute_gates(X, mask=HOLES)
    order = slice(None, None, -1 if go_backwards else 1)
    for n, mask in enumerate(HOLES):
        short = layer.compute_gates(X[n : n + 1, mask])
        mask = mask[order]
        for name, got, expected in zip(GATES[pooling], gates, short, strict=True):
            row = ops.convert_to_numpy(got)[n]
            assert_close(f"gate {name}", row[mask], expected[0])
            assert (row[~mask] == (name == "f")).all()


@pytest.mark.parametrize("symbolic", [False, True])
def test_masks_with_an_axis_of_one(symbolic):
    layer = QRNN(UNITS, return_sequences=True)
    expected = layer(X, mask=HOLES)
    mask = HOLES[..., None]
    if symbolic:
        inputs = [keras.Input((TIME, FEATURES)), keras.Input((TIME, 1), dtype="bool")]
        model = keras.Model(inputs, layer(inputs[0], mask=inputs[1]))
        assert_close("outputs", model([X, mask]), expected)
    else:
        assert_close("outputs", layer(X, mask=mask), expected)


TOKENS = np.array([[3, 0, 5, 2, 0], [0, 0, 4, 0, 1], [6, 7, 8, 9, 1]], "int32")


def functional(embedding, layer, count):
    tokens, state = keras.Input((None,), dtype="int32"), keras.Input((UNITS,))
    outputs = layer(embedding(tokens), initial_state=[state] * count)
    return keras.Model([tokens, state], outputs)


def subclassed(embedding, layer, count):
    class Decoder(keras.Model):
        def __init__(self):
            super().__init__()
            self.embedding, self.layer = embedding, layer

        def call(self, inputs):
            tokens, state = inputs
            return self.layer(self.embedding(tokens), initial_state=[state] * count)

    return Decoder()


@pytest.mark.parametrize("model_of", [functional, subclassed])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_carried_mask_holds_where_a_state_is_given(model_of, bidirectional):
    """Keras passes a mask on only to calls with one tensor argument."""
    embedding = keras.layers.Embedding(10, FEATURES, mask_zero=True)
    layer = QRNN(UNITS, return_sequences=True)
    if bidirectional:
        layer = keras.layers.Bidirectional(layer)
    state = RNG.normal(size=(BATCH, UNITS)).astype("float32")
    count = 2 if bidirectional else 1
    expected = layer(embedding(TOKENS), initial_state=[state] * count, mask=TOKENS != 0)
    model = model_of(embedding, layer, count)
    assert_close("outputs", model.predict([TOKENS, state], verbose=0), expected)


def test_a_carried_mask_holds_where_inputs_are_cast():
    embedding = keras.layers.Embedding(10, FEATURES, mask_zero=True)
    layer = QRNN(UNITS, return_sequences=True, dtype="float64")
    state = RNG.normal(size=(BATCH, UNITS))
    expected = layer(embedding(TOKENS), initial_state=state, mask=TOKENS != 0)
    got = layer(embedding(TOKENS), initial_state=state)
    assert_close("outputs", got, expected, 0)


def test_masks_through_time_distributed():
    x = np.stack([X, X + 1], axis=1)  # (batch, 2 sequences, time, features)
    mask = np.stack([HOLES, HOLES[::-1]], axis=1)
    layer = keras.layers.TimeDistributed(QRNN(UNITS))
    got = ops.convert_to_numpy(layer(x, mask=mask))
    for n in range(2):
        expected = layer.layer(x[:, n], mask=mask[:, n])
        assert_close(f"outputs of sequence {n}", got[:, n], expected)
