"""AttentionQRNN's values, gradients, states and masks against the reference."""

import hypothesis
import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

from keras_qrnn import QRNN, AttentionQRNN
from tests import reference
from tests.assertions import ROUNDING, assert_close
from tests.conftest import EXAMPLES
from tests.gradients import value_and_gradients
from tests.layers.test_qrnn import (
    BATCH,
    FEATURES,
    UNITS,
    differentiable,
    to_numpy,
    without_gradient,
)

BACKEND = keras.config.backend()
trains = pytest.mark.skipif(BACKEND == "numpy", reason="NumPy does not train")
RNG = np.random.default_rng(0)
X = RNG.normal(size=(3, 5, FEATURES)).astype("float32")
SOURCE = RNG.normal(size=(3, 4, UNITS)).astype("float32")
SOURCE_MASK = np.array([[1, 0, 1, 0], [0] * 4, [1] * 4], bool)


FEW = hypothesis.settings(max_examples=max(3, EXAMPLES // 3))  # each is compiled


@st.composite
def cases(draw, paddings=("causal", "same")):
    """A layer's configuration, its inputs, masks and state. The shapes are few."""
    dtype = draw(st.sampled_from(list(ROUNDING)))
    config = {
        "dtype": dtype,
        "window": draw(st.sampled_from([1, 3])),
        "padding": draw(st.sampled_from(paddings)),
        "go_backwards": draw(st.booleans()),
        "zero_output_for_mask": draw(st.booleans()),
        "zoneout": draw(st.sampled_from([0.0, 0.3])),
        "use_bias": draw(st.booleans()),
    }
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    # Of a sequence nothing, some or all steps are valid.
    valid = st.sampled_from([[1, 1, 1], [0, 0.6, 1], [0.6, 0.3, 0.8]])
    inputs = [rng.normal(size=each.shape).astype(dtype) for each in (X, SOURCE)]
    masks = [
        rng.uniform(size=each.shape[:2]) < np.array(draw(valid))[:, None]
        if draw(st.booleans())
        else None
        for each in inputs
    ]
    state = None
    if draw(st.booleans()):
        state = [rng.normal(size=(3, UNITS)).astype(dtype)]
        if config["window"] > 1 and config["padding"] == "causal":
            state.append(rng.normal(size=(3, 2, FEATURES)).astype(dtype))
    context = rng.normal(size=(3, 2)).astype(dtype) if draw(st.booleans()) else None
    return config, inputs, masks, state, context


def layer_for(config, **extra):
    bias = keras.initializers.RandomNormal()
    return AttentionQRNN(UNITS, **config, **extra, bias_initializer=bias)


def expected_of(
    layer, inputs, masks=(None, None), state=None, context=None, **gradient
):
    """The reference's result for the weights of `layer`."""
    flip = slice(None, None, -1 if layer.go_backwards else 1)
    (x, source), (mask, source_mask) = inputs, masks
    kernel, output_kernel = to_numpy(layer.kernel), to_numpy(layer.output_kernel)
    bias = np.zeros(3 * UNITS) if layer.bias is None else to_numpy(layer.bias)
    names = ("cell", "window")[: len(state or [])]
    states = {n: s.astype("float64") for n, s in zip(names, state or [], strict=True)}
    if context is not None:
        kernel_of_context = to_numpy(layer.context_kernel)
        states |= {"context": context, "context_kernel": kernel_of_context}
    result = reference.attention_qrnn(
        x[:, flip].astype("float64"),
        kernel,
        bias,
        output_kernel,
        source.astype("float64"),
        source_mask,
        None if mask is None else mask[:, flip],
        update_scale=1 - layer.zoneout,
        zero_output_for_mask=layer.zero_output_for_mask,
        padding=layer.padding,
        **states,
        **gradient,
    )
    if result.gradients:
        result.gradients["x"] = result.gradients["x"][:, flip]
    return result


@hypothesis.settings(max_examples=max(6, EXAMPLES // 2))
@given(cases())
def test_values(case):
    config, (x, source), (mask, source_mask), state, context = case
    layer = layer_for(config, return_sequences=True, return_state=True)
    arguments = {"initial_state": state, "mask": mask, "encoder_mask": source_mask}
    arguments["context"] = context
    outputs, attention, *states = layer(
        x, source, **arguments, return_attention_scores=True
    )
    expected = expected_of(layer, *case[1:])
    rounding = ROUNDING[config["dtype"]]
    assert_close("outputs", outputs, expected.outputs, rounding)
    assert_close("attention", attention, expected.attention, rounding)
    assert_close("cell", states[0], expected.cell, rounding)
    for window in states[1:]:
        assert_close("window", window, expected.window, rounding)
    layer.return_sequences = layer.return_state = False
    last = layer(x, source, **arguments)
    assert_close("last output", last, expected.outputs[:, -1], rounding)


@differentiable
@FEW
@given(cases())
def test_gradients(case):
    config, inputs, (mask, source_mask), state, context = case
    layer = layer_for(config, return_sequences=True, return_state=True)
    contexts = [] if context is None else [context]
    layer.build(inputs[0].shape, context_shape=np.shape(context) or None)
    rng = np.random.default_rng(5)
    batch, time = inputs[0].shape[:2]
    shapes = {
        "d_outputs": (batch, time, UNITS),
        "d_attention": (batch, time, inputs[1].shape[1]),
        "d_cell": (batch, UNITS),
    }
    by = {
        name: rng.normal(size=each).astype(config["dtype"])
        for name, each in shapes.items()
    }
    state = state or [np.zeros((batch, UNITS), config["dtype"])]
    weights = {weight.name: ops.convert_to_numpy(weight) for weight in layer.weights}
    seeds = [ops.convert_to_tensor(v) for v in layer.non_trainable_variables]

    def loss(x, source, *rest):
        states, rest = list(rest[: len(state)]), rest[len(state) :]
        context, weights = (rest[0], rest[1:]) if contexts else (None, rest)
        results, _ = layer.stateless_call(
            weights, seeds, x, source, initial_state=states, mask=mask,
            encoder_mask=source_mask, context=context, return_attention_scores=True,
        )  # fmt: skip
        pairs = zip(results, by.values(), strict=False)  # the window has none
        return sum(ops.sum(each * ops.convert_to_tensor(d)) for each, d in pairs)

    arrays = [*inputs, *state, *contexts, *weights.values()]
    _, gradients = value_and_gradients(loss, arrays)
    expected = expected_of(layer, *case[1:3], state, context, **by).gradients
    names = ["x", "source", *["cell", "window"][: len(state)]]
    names += [*["context"][: len(contexts)], *weights]
    rounding = ROUNDING[config["dtype"]]
    for name, gradient in zip(names, gradients, strict=True):
        assert_close(f"gradient by {name}", gradient, expected[name], rounding)


@FEW
@given(
    cases(paddings=["causal"]), st.sampled_from([(2, 5), range(1, 6)]), st.booleans()
)
def test_pieces_equal_the_whole(case, ends, stateful):
    """Two pieces, or one step at a time."""
    config, (x, source), (mask, source_mask), _, context = case
    layer = layer_for(
        config, return_sequences=True, return_state=True, stateful=stateful
    )
    time = x.shape[1]
    common = {"encoder_mask": source_mask, "context": context}
    common["return_attention_scores"] = True
    whole = layer(x, source, mask=mask, **common)
    layer.reset_state()
    pieces, states, previous, start = [], None, None, 0
    for end in ends:
        at = slice(start, end)
        if config["go_backwards"]:
            at = slice(time - end, time - start)
        outputs, attention, *states = layer(
            x[:, at], source, mask=None if mask is None else mask[:, at], **common,
            initial_state=None if stateful else states, previous_output=previous,
        )  # fmt: skip
        pieces.append((to_numpy(outputs), to_numpy(attention)))
        previous, start = None if stateful else outputs[:, -1], end
    outputs, attention = (np.concatenate(each, 1) for each in zip(*pieces, strict=True))
    rounding = ROUNDING[config["dtype"]]
    for got, expected in zip((outputs, attention, *states), whole, strict=True):
        assert_close("outputs, attention or state", got, expected, rounding)


def test_nan_in_masked_steps_reaches_nothing():
    mask = np.array([[1, 0, 1, 1, 0], [0, 1, 1, 0, 1], [1] * 5], bool)
    layer = layer_for({}, return_sequences=True)
    layer.build(X.shape)

    def loss(x, source, *weights):
        outputs, _ = layer.stateless_call(
            weights, [], x, source, mask=mask, encoder_mask=SOURCE_MASK
        )
        return ops.sum(outputs * outputs)

    found = []
    for worst in (0.0, np.nan, np.inf):
        x, source = X.copy(), SOURCE.copy()
        x[~mask] = source[~SOURCE_MASK] = worst
        arrays = [x, source, *(ops.convert_to_numpy(each) for each in layer.weights)]
        if BACKEND == "numpy":
            found.append([loss(*arrays)])
            continue
        value, gradients = value_and_gradients(loss, arrays)
        found.append([value, *gradients])
        assert (gradients[1][~SOURCE_MASK] == 0).all()
    for others in found[1:]:
        for expected, got in zip(found[0], others, strict=True):
            assert_close("value or gradient", got, expected, 0)


@pytest.mark.parametrize("dtype", ["mixed_float16", "float64"])
def test_dtype_policies(dtype):
    layer = AttentionQRNN(UNITS, return_sequences=True, return_state=True, dtype=dtype)
    # Half precision has steps of 0.5 between dot products around 1,000.
    source = SOURCE * np.float32(300)
    outputs, attention, cell, window = layer(
        X, source, encoder_mask=SOURCE_MASK, return_attention_scores=True
    )
    compute = dtype.removeprefix("mixed_")
    for each in (outputs, attention):
        assert keras.backend.standardize_dtype(each.dtype) == compute
    for state in (cell, window):
        assert keras.backend.standardize_dtype(state.dtype) == layer.variable_dtype
    expected = expected_of(layer, (X, source), (None, SOURCE_MASK))
    tolerance = 0.02 if compute == "float16" else ROUNDING[compute]
    assert_close("cell", cell, expected.cell, tolerance)
    assert np.isfinite(to_numpy(attention)).all()
    np.testing.assert_allclose(
        to_numpy(attention).sum(-1), SOURCE_MASK.any(1)[:, None] * np.ones((1, 5)),
        atol=tolerance,
    )  # fmt: skip
    if compute == "float64":
        assert_close("outputs", outputs, expected.outputs, tolerance)
        assert_close("attention", attention, expected.attention, tolerance)


def test_other_activations_and_padding():
    config = {"window": 3, "padding": "same", "zoneout": 0.2}
    fused, other = layer_for(config), layer_for(config, activation=ops.tanh)
    for layer in (fused, other):
        layer.build(X.shape)
    other.set_weights(fused.get_weights())
    expected = expected_of(fused, (X, SOURCE)).outputs[:, -1]
    assert_close("outputs", fused(X, SOURCE), expected)
    assert_close("outputs", other(X, SOURCE), expected)


def test_inference_in_pieces():
    """A batch of which a piece is few steps."""
    layer = layer_for({"window": 3}, return_sequences=True)
    arrays = [np.tile(each, (BATCH // 3, 1, 1)) for each in (X, SOURCE)]
    outputs = without_gradient(layer, *arrays)
    expected = expected_of(layer, (X, SOURCE)).outputs
    assert_close("outputs", outputs, np.tile(expected, (BATCH // 3, 1, 1)))


@pytest.mark.one_backend
def test_zoneout_keeps_states_or_updates_them():
    """With o = 1, W_k = 0 and W_c = 1 the outputs are the states."""
    layer = AttentionQRNN(64, zoneout=0.5, seed=1, return_sequences=True)
    source = np.ones((3, 4, 64), "float32")
    layer.build(X.shape, encoder_outputs_shape=source.shape)
    layer.output_kernel.assign(np.eye(128, 64, -64))
    layer.bias.assign(np.repeat([0.0, 0.0, 1e4], 64))
    outputs = to_numpy(layer(X, source, training=True))
    kept = np.mean(outputs[:, 1:] == outputs[:, :-1])
    assert 0.45 < kept < 0.55


def decoder():
    """A model of characters: an encoder, and a decoder with attention to it."""
    source, target = keras.Input((None,)), keras.Input((None,))
    embedding = keras.layers.Embedding(7, FEATURES, mask_zero=True)
    encoder = QRNN(UNITS, return_sequences=True, return_state=True, padding="same")
    encoded, cell = encoder(embedding(source))
    layer = AttentionQRNN(
        UNITS,
        return_sequences=True,
        output_kernel_initializer="orthogonal",
        output_kernel_regularizer="l2",
        output_kernel_constraint="max_norm",
        bias_initializer="random_normal",
    )
    outputs, attention = layer(
        embedding(target), encoded, initial_state=cell, return_attention_scores=True
    )
    return keras.Model([source, target], [outputs, attention])


TOKENS = np.array([[3, 1, 2, 4], [5, 6, 0, 0], [0, 0, 0, 0]]), np.array([[1, 2, 5]] * 3)


def test_in_a_functional_model_and_in_files(tmp_path):
    model = decoder()
    outputs, attention = model.outputs
    assert outputs.shape == (None, None, UNITS) and attention.shape == (None,) * 3
    assert len(model.losses) == 1
    outputs, attention = map(to_numpy, model(list(TOKENS)))
    # The mask of the source's embedding has come through the encoder.
    assert (attention[:, 0] > 0).tolist() == (TOKENS[0] > 0).tolist()
    assert np.isfinite(outputs).all()
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for got, expected in zip(loaded(list(TOKENS)), (outputs, attention), strict=True):
        assert_close("output", got, expected, 1e-6)
    model.save_weights(tmp_path / "a.weights.h5")
    copy = decoder()
    copy.load_weights(tmp_path / "a.weights.h5")
    assert_close("output", copy(list(TOKENS))[0], outputs, 1e-6)
    layer = loaded.layers[-1]
    assert [each.name for each in layer.weights] == ["kernel", "bias", "output_kernel"]
    config = layer.get_config()
    for name in ("initializer", "regularizer", "constraint"):
        assert config[f"output_kernel_{name}"] is not None


@trains
def test_fit():
    """Training lowers the loss of a task that needs attention: reversing the source."""
    model = decoder()
    model = keras.Model(model.inputs, keras.layers.Dense(7)(model.outputs[0]))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.05), loss)
    source = np.random.default_rng(0).integers(1, 7, (64, 5))
    target = source[:, ::-1]
    before = np.pad(target[:, :-1], ((0, 0), (1, 0)))
    inputs = [source, before]
    losses = model.fit(inputs, target, batch_size=64, epochs=8, verbose=0).history
    assert losses["loss"][-1] < losses["loss"][0] - 0.1


def test_bad_arguments():
    with pytest.raises(ValueError, match="`pooling` of an AttentionQRNN must be 'fo'"):
        AttentionQRNN(4, pooling="ifo")
    layer = AttentionQRNN(UNITS)
    source = keras.KerasTensor(SOURCE.shape)
    for shape in ((3, 4, UNITS + 1), (2, 4, UNITS), (3, UNITS), (3, 0, UNITS)):
        for make in (np.zeros, keras.KerasTensor):
            with pytest.raises(ValueError, match="`encoder_outputs` must have shape"):
                layer(make(X.shape), make(shape))
    for mask in (np.ones((3, 6), bool), keras.KerasTensor((3, 6), "bool")):
        symbolic = isinstance(mask, keras.KerasTensor)
        inputs = (keras.KerasTensor(X.shape), source) if symbolic else (X, SOURCE)
        with pytest.raises(ValueError, match="`encoder_mask` must have shape"):
            layer(*inputs, encoder_mask=mask)
    with pytest.raises(ValueError, match="`mask` must have shape"):
        layer(X, SOURCE, mask=np.ones((3, 4), bool))
