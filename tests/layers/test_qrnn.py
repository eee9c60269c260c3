"""The QRNN layer's values, gradients, states and masks against the reference."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

from keras_qrnn import QRNN, AttentionQRNN
from tests import reference
from tests.assertions import ROUNDING, assert_close
from tests.gradients import value_and_gradients

FEATURES, UNITS, CONTEXT = 3, 4, 2
differentiable = pytest.mark.skipif(
    keras.config.backend() == "numpy", reason="the NumPy backend has no gradients"
)


def to_numpy(tensor):
    return ops.convert_to_numpy(ops.cast(tensor, "float64"))


# A batch of which a piece is few steps, and how many of its sequences are distinct.
BATCH, DISTINCT = 600, 24


def repeated(rows, batch=None):
    """`batch` rows that repeat `rows`: the reference computes only `rows`."""
    batch = BATCH if batch is None else batch
    return np.tile(rows, (batch // len(rows), *[1] * (np.ndim(rows) - 1)))


@st.composite
def cases(draw, paddings=("causal", "same"), dtypes=tuple(ROUNDING)):
    """A layer's configuration, its input, mask, state and context."""
    dtype = draw(st.sampled_from(dtypes))
    window = draw(st.integers(1, 4))
    padding = draw(st.sampled_from(paddings))
    # Few shapes: some backends compile each.
    batch, time = draw(st.sampled_from([1, 3])), draw(st.sampled_from([1, 3, 8]))
    mask = draw(st.sampled_from(["none", "right", "left", "holes"]))
    seed = draw(st.integers(0, 99))
    rng = np.random.default_rng(seed)
    masks = {
        "none": None,
        "right": np.arange(time) < rng.integers(0, time + 1, (batch, 1)),
        "left": np.arange(time) >= rng.integers(0, time + 1, (batch, 1)),
        "holes": rng.uniform(size=(batch, time)) < 0.6,
    }
    state = None
    if draw(st.booleans()):
        state = [rng.normal(size=(batch, UNITS))]
        if window > 1 and padding == "causal":
            state.append(rng.normal(size=(batch, window - 1, FEATURES)))
        state = [s.astype(dtype) for s in state]
    config = {
        "dtype": dtype,
        "window": window,
        "pooling": draw(st.sampled_from(["f", "fo", "ifo"])),
        "go_backwards": draw(st.booleans()),
        "zero_output_for_mask": draw(st.booleans()),
        "zoneout": draw(st.sampled_from([0.0, 0.3])),
        "use_bias": draw(st.booleans()),
        "padding": padding,
    }
    x = rng.normal(size=(batch, time, FEATURES)).astype(dtype)
    context = None
    if draw(st.booleans()):
        context = rng.normal(size=(batch, CONTEXT)).astype(dtype)
    return config, x, masks[mask], state, context, draw(st.integers(0, time))


def layer_for(config, **extra):
    layer = QRNN(
        UNITS, **config, **extra, bias_initializer=keras.initializers.RandomNormal()
    )
    return layer


def expected_of(layer, x, mask, state, context=None, **gradient):
    kernel = to_numpy(layer.kernel)
    bias = np.zeros(kernel.shape[-1]) if layer.bias is None else to_numpy(layer.bias)
    flip = slice(None, None, -1 if layer.go_backwards else 1)
    state = [None, None] if state is None else [s.astype("float64") for s in state]
    if context is not None:
        gradient["context"] = context.astype("float64")
        gradient["context_kernel"] = to_numpy(layer.context_kernel)
    result = reference.qrnn(
        x[:, flip].astype("float64"),
        kernel,
        bias,
        layer.pooling,
        cell=state[0],
        window=state[1] if len(state) > 1 else None,
        mask=None if mask is None else mask[:, flip],
        update_scale=1 - layer.zoneout,
        zero_output_for_mask=layer.zero_output_for_mask,
        padding=layer.padding,
        **gradient,
    )
    if result.gradients:
        result.gradients["x"] = result.gradients["x"][:, flip]
    return result


def without_gradient(layer, *arguments, **keywords):
    """The layer's call as `predict` makes it."""
    if keras.config.backend() != "torch":
        return layer(*arguments, **keywords)
    import torch

    with torch.no_grad():
        return layer(*arguments, **keywords)


@given(cases())
def test_values(case):
    config, x, mask, state, context, _ = case
    layer = layer_for(config, return_sequences=True, return_state=True)
    outputs, cell, *window = layer(x, initial_state=state, mask=mask, context=context)
    expected = expected_of(layer, x, mask, state, context)
    rounding = ROUNDING[config["dtype"]]
    assert_close("outputs", outputs, expected.outputs, rounding)
    assert_close("cell", cell, expected.cell, rounding)
    assert len(window) == (config["window"] > 1 and config["padding"] == "causal")
    if window:
        assert_close("window", window[0], expected.window, rounding)
    last = layer_for(config)
    last.build(x.shape, context_shape=None if context is None else context.shape)
    last.set_weights(layer.get_weights())
    got = last(x, initial_state=state, mask=mask, context=context)
    assert_close("got", got, expected.outputs[:, -1], rounding)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("pooling", ["f", "fo", "ifo"])
@pytest.mark.parametrize(
    ("window", "time", "padding"),
    [(1, 9, "causal"), (2, 9, "same"), (3, 8, "causal"), (5, 2, "causal")],
)
def test_inference_in_pieces(window, time, padding, pooling, masked):
    """The pieces of this batch have one, two or three steps. One step is left over."""
    rng = np.random.default_rng(time)
    x = rng.normal(size=(DISTINCT, time, FEATURES)).astype("float32")
    mask = rng.uniform(size=(DISTINCT, time)) < 0.6 if masked else None
    state = [rng.normal(size=(DISTINCT, UNITS)).astype("float32")]
    if window > 1 and padding == "causal":
        window_state = rng.normal(size=(DISTINCT, window - 1, FEATURES))
        state.append(window_state.astype("float32"))
    config = {"window": window, "pooling": pooling, "zoneout": 0.3, "padding": padding}
    context = rng.normal(size=(DISTINCT, CONTEXT)).astype("float32")
    context = None if window == 1 else context
    layer = layer_for(config, return_sequences=True, return_state=True)
    outputs, cell, *rest = without_gradient(
        layer,
        repeated(x),
        initial_state=[repeated(each) for each in state],
        mask=repeated(mask) if masked else None,
        context=None if context is None else repeated(context),
    )
    expected = expected_of(layer, x, mask, state, context)
    assert_close("outputs", outputs, repeated(expected.outputs))
    assert_close("cell", cell, repeated(expected.cell))
    if rest:
        assert_close("window", rest[0], repeated(expected.window))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_inference_in_pieces_in_other_dtypes(dtype):
    x = np.random.default_rng(0).normal(size=(DISTINCT, 9, FEATURES))
    layer = QRNN(UNITS, return_sequences=True, dtype=dtype)
    outputs = without_gradient(layer, repeated(x))
    assert keras.backend.standardize_dtype(outputs.dtype) == dtype
    tolerance = {"float16": 5e-3, "bfloat16": 4e-2, "float64": 1e-12}[dtype]
    expected = expected_of(layer, x, None, None)
    assert_close("outputs", outputs, repeated(expected.outputs), tolerance)


@differentiable
@given(cases())
def test_gradients(case):
    config, x, mask, state, context, _ = case
    layer = layer_for(config, return_sequences=True, return_state=True)
    layer.build(x.shape, context_shape=None if context is None else context.shape)
    rng = np.random.default_rng(5)
    d_outputs = rng.normal(size=(*x.shape[:2], UNITS)).astype(config["dtype"])
    d_cell = rng.normal(size=(len(x), UNITS)).astype(config["dtype"])
    given_state = state or [np.zeros((len(x), UNITS), config["dtype"])]
    weights = [ops.convert_to_numpy(w) for w in layer.weights]
    seeds = [ops.convert_to_tensor(v) for v in layer.non_trainable_variables]
    contexts = [] if context is None else [context]

    def loss(x, *rest):
        state, rest = list(rest[: len(given_state)]), rest[len(given_state) :]
        context, values = rest[: len(contexts)], rest[len(contexts) :]
        (outputs, cell, *_), _ = layer.stateless_call(
            values, seeds, x, initial_state=state, mask=mask,
            context=context[0] if context else None,
        )  # fmt: skip
        return ops.sum(outputs * ops.convert_to_tensor(d_outputs)) + ops.sum(
            cell * ops.convert_to_tensor(d_cell)
        )

    _, gradients = value_and_gradients(loss, [x, *given_state, *contexts, *weights])
    expected = expected_of(
        layer, x, mask, given_state, context, d_outputs=d_outputs, d_cell=d_cell
    ).gradients
    names = ["x", "cell", "window"][: len(given_state) + 1]
    names += ["context"] * len(contexts) + [weight.name for weight in layer.weights]
    rounding = ROUNDING[config["dtype"]]
    for name, gradient in zip(names, gradients, strict=True):
        assert_close(f"gradient by {name}", gradient, expected[name], rounding)


@given(cases(paddings=["causal"]))
def test_pieces_equal_the_whole(case):
    config, x, mask, _, context, cut = case
    layer = layer_for(config, return_sequences=True, return_state=True)
    whole, *whole_state = layer(x, mask=mask, context=context)
    pieces = (slice(0, cut), slice(cut, None))
    if config["go_backwards"]:
        pieces = pieces[::-1]
    outputs, state, previous_output = [], None, None
    for piece in pieces:
        if x[:, piece].shape[1] == 0:
            continue
        part, *state = layer(
            x[:, piece],
            initial_state=state,
            mask=None if mask is None else mask[:, piece],
            previous_output=previous_output,
            context=context,
        )
        outputs.append(to_numpy(part))
        # With zeros for masked steps the last output says nothing and is unused.
        previous_output = part[:, -1]
    rounding = ROUNDING[config["dtype"]]
    assert_close("outputs", np.concatenate(outputs, axis=1), whole, rounding)
    for got, expected in zip(state, whole_state, strict=True):
        assert_close("got", got, to_numpy(expected), rounding)


@given(cases(paddings=["causal"]))
def test_stateful_pieces_equal_the_whole(case):
    config, x, mask, _, context, cut = case
    layer = layer_for(config, return_sequences=True, stateful=True)
    whole = to_numpy(layer(x, mask=mask, context=context))
    for single_steps in (False, True):
        layer.reset_state()
        ends = range(1, x.shape[1] + 1) if single_steps else sorted({cut, x.shape[1]})
        outputs, start = [], 0
        for end in ends:
            if end > start:
                at = slice(start, end)
                if config["go_backwards"]:
                    at = slice(x.shape[1] - end, x.shape[1] - start)
                piece_mask = None if mask is None else mask[:, at]
                piece = layer(x[:, at], mask=piece_mask, context=context)
                outputs.append(to_numpy(piece))
            start = end
        got = np.concatenate(outputs, axis=1)
        assert_close("outputs", got, whole, ROUNDING[config["dtype"]])


def test_cell_state_alone_starts_with_an_empty_window():
    x = np.random.default_rng(0).normal(size=(2, 5, FEATURES)).astype("float32")
    cell = np.ones((2, UNITS), "float32")
    layer = QRNN(UNITS, window=3, return_sequences=True)
    alone = layer(x, initial_state=cell)
    full = layer(x, initial_state=[cell, np.zeros((2, 2, FEATURES), "float32")])
    assert_close("alone", alone, to_numpy(full), 0)


def test_zoneout_keeps_units_or_updates_them():
    layer = QRNN(64, pooling="f", zoneout=0.5, seed=1, return_sequences=True)
    x = np.random.default_rng(0).normal(size=(4, 20, FEATURES)).astype("float32")
    outputs = to_numpy(layer(x, training=True))
    kept = np.mean(outputs[:, 1:] == outputs[:, :-1])
    assert 0.45 < kept < 0.55
    assert np.any(to_numpy(layer(x, training=True)) != outputs)
    inference = to_numpy(layer(x))
    assert_close("outputs", inference, expected_of(layer, x, None, None).outputs)


def test_kernel_dropout_draws_one_mask_a_call():
    """With f = 0 and one-hot inputs the output at step t is row t of z's kernel."""
    size = 40
    layer = QRNN(
        size, 1, "f", activation="linear", return_sequences=True, seed=1,
        kernel_dropout=0.25,
    )  # fmt: skip
    x = np.stack([np.eye(size, dtype="float32")] * 3)
    layer.build(x.shape)
    bias = np.concatenate([np.zeros(size), np.full(size, -1e4)])
    layer.bias.assign(bias)
    whole = to_numpy(layer(x))
    kernel = to_numpy(layer.kernel)[0, :, :size]
    assert_close("outputs", whole[0], kernel)
    dropped = to_numpy(layer(x, training=True))
    assert (dropped == dropped[:1]).all()  # the same for all sequences
    is_zero = dropped[0] == 0
    assert 0.2 < is_zero.mean() < 0.3
    assert_close("outputs", dropped[0], np.where(is_zero, 0, kernel / 0.75))
    again = to_numpy(layer(x, training=True))[0] == 0
    assert (again != is_zero).any()
    assert QRNN.from_config(layer.get_config()).kernel_dropout == 0.25
    assert layer.get_config()["kernel_dropout"] == 0.25


@differentiable
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_dropped_elements_of_the_kernel_get_no_gradient(policy):
    layer = QRNN(16, kernel_dropout=0.5, seed=1, dtype=policy)
    model = keras.Sequential([layer])
    x = np.random.default_rng(0).normal(size=(4, 6, 16)).astype("float32")
    model.build(x.shape)
    before = to_numpy(layer.kernel)
    model.compile(keras.optimizers.SGD(1.0), "mse")
    model.fit(x, np.ones((4, 16), "float32"), verbose=0)
    kept = np.mean(to_numpy(layer.kernel) == before)
    assert 0.45 < kept < 0.55


@differentiable
@pytest.mark.parametrize("pooling", ["f", "fo", "ifo"])
@pytest.mark.parametrize(("batch", "time"), [(2, 6), (None, 8)])
def test_gradients_with_a_zoneout_mask(batch, time, pooling):
    batch = batch or BATCH
    from keras_qrnn.ops.backend import backend

    rng = np.random.default_rng(2)
    count = len(reference.GATES[pooling])
    rows = min(batch, DISTINCT)
    y = rng.normal(size=(rows, time, count * UNITS)).astype("float32")
    cell = rng.normal(size=(rows, UNITS)).astype("float32")
    update_scale = rng.uniform(size=(rows, time, UNITS)) > 0.4
    weight = rng.normal(size=(rows, time, UNITS)).astype("float32")
    scales, weights = repeated(update_scale, batch), repeated(weight, batch)

    def loss(y, cell):
        outputs, last = backend.pool(
            y, cell, ops.convert_to_tensor(scales), pooling, activate=True
        )
        return ops.sum(outputs * ops.convert_to_tensor(weights)) + ops.sum(last)

    _, gradients = value_and_gradients(
        loss, [repeated(y, batch), repeated(cell, batch)]
    )
    expected = reference.qrnn(
        y.astype("float64"),
        np.eye(count * UNITS)[None],
        np.zeros(count * UNITS),
        pooling,
        cell=cell.astype("float64"),
        update_scale=update_scale.astype("float64"),
        d_outputs=weight,
        d_cell=np.ones((rows, UNITS)),
    ).gradients
    assert_close("gradient by the gates", gradients[0], repeated(expected["x"], batch))
    assert_close(
        "gradient by the cell", gradients[1], repeated(expected["cell"], batch)
    )


def test_dropout_is_shared_by_the_steps():
    layer = QRNN(UNITS, dropout=0.5, seed=3, window=1, pooling="f", use_bias=False)
    layer.build((8, 6, FEATURES))
    # All steps alike: only a mask that changes over time could tell them apart.
    x = np.ones((8, 6, FEATURES), "float32")
    layer.return_sequences = True
    outputs = to_numpy(layer(x, training=True))
    kernel = to_numpy(layer.kernel)[0]
    subsets = np.stack(np.meshgrid(*[[0, 2]] * FEATURES), -1).reshape(-1, FEATURES)
    steady = []
    for subset in subsets:  # every possible dropout mask, scaled by 1 / (1 - rate)
        expected = reference.qrnn(
            np.broadcast_to(subset, (1, 6, FEATURES)).astype("float64"),
            kernel[None],
            np.zeros(kernel.shape[-1]),
            "f",
        ).outputs[0]
        steady.append(expected)
    for sequence in outputs:
        assert min(np.abs(sequence - s).max() for s in steady) < 1e-5
    assert_close("outputs", layer(x), expected_of(layer, x, None, None).outputs)


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_dtype_policies(dtype):
    x = np.random.default_rng(0).normal(size=(2, 40, FEATURES))
    layer = QRNN(
        UNITS, zoneout=0.1, return_sequences=True, return_state=True, dtype=dtype
    )
    outputs, cell, window = layer(x)
    compute = dtype.removeprefix("mixed_")
    assert keras.backend.standardize_dtype(outputs.dtype) == compute
    variable = "float64" if dtype == "float64" else "float32"
    for tensor in (layer.kernel, cell, window):
        assert keras.backend.standardize_dtype(tensor.dtype) == variable
    tolerance = {"float16": 5e-3, "bfloat16": 4e-2, "float64": 1e-12}[compute]
    expected = expected_of(layer, x, None, None)
    assert_close("outputs", outputs, expected.outputs, tolerance)


@pytest.mark.parametrize("return_sequences", [True, False])
@pytest.mark.parametrize("layer_of", [QRNN, AttentionQRNN])
def test_activations_that_compute_in_another_dtype(layer_of, return_sequences):
    """The output has the compute dtype, and the mask works."""
    layer = layer_of(
        UNITS,
        activation=lambda x: ops.tanh(ops.cast(x, "float32")),
        recurrent_activation=lambda x: ops.sigmoid(ops.cast(x, "float32")),
        return_sequences=return_sequences,
        dtype="mixed_float16",
    )
    x = np.random.default_rng(0).normal(size=(2, 3, FEATURES)).astype("float32")
    mask = np.array([[True, False, True], [False, True, False]])
    source = [np.ones((2, 3, UNITS), "float32")] if layer_of is AttentionQRNN else []
    for output in (layer(x, *source, mask=mask), *layer.compute_gates(x, mask=mask)):
        assert keras.backend.standardize_dtype(output.dtype) == "float16"


@pytest.mark.parametrize(
    ("activation", "recurrent_activation"),
    [("relu", "hard_sigmoid"), ("linear", "sigmoid"), ("tanh", "hard_sigmoid")],
)
@pytest.mark.parametrize("pooling", ["f", "fo", "ifo"])
def test_other_activations(activation, recurrent_activation, pooling):
    x = np.random.default_rng(0).normal(size=(2, 7, FEATURES)).astype("float32")
    layer = QRNN(
        UNITS, 2, pooling, activation, recurrent_activation, return_sequences=True
    )
    outputs = to_numpy(layer(x))
    gates = [to_numpy(g) for g in layer.compute_gates(x)]
    padded = np.concatenate([np.zeros((2, 1, FEATURES)), x], axis=1)
    kernel = to_numpy(layer.kernel)
    y = padded[:, :-1] @ kernel[0] + padded[:, 1:] @ kernel[1]
    functions = [activation] + [recurrent_activation] * (len(gates) - 1)
    for gate, part, function in zip(
        gates, np.split(y, len(gates), -1), functions, strict=True
    ):
        assert_close("gate", gate, keras.activations.get(function)(part))
    z, f, *rest = gates
    inputs = rest[1] * z if pooling == "ifo" else (1 - f) * z
    cells = reference.linear_scan(f, inputs, np.zeros((2, UNITS)))
    assert_close("outputs", outputs, cells if pooling == "f" else rest[0] * cells)


def test_gates_continue_from_a_state():
    x = np.random.default_rng(0).normal(size=(2, 7, FEATURES)).astype("float32")
    layer = QRNN(UNITS, window=3, return_state=True)
    _, *state = layer(x[:, :4])
    whole, rest = layer.compute_gates(x), layer.compute_gates(x[:, 4:], state)
    assert len(whole) == 3
    for a, b in zip(whole, rest, strict=True):
        assert_close("gate", a[:, 4:], b)
    with pytest.raises(ValueError, match="must be a tensor that has values"):
        layer.compute_gates(keras.Input((7, FEATURES)))


def test_the_same_padding_is_that_of_a_convolution():
    """With a forget gate of 0, z is the convolution itself at each step."""
    x = np.random.default_rng(0).normal(size=(2, 7, FEATURES)).astype("float32")
    for window in (3, 4):
        convolution = keras.layers.Conv1D(UNITS, window, padding="same")
        layer = QRNN(
            UNITS, window, "f", activation="linear", padding="same",
            return_sequences=True,
        )  # fmt: skip
        expected = convolution(x)
        layer.build(x.shape)
        kernel = np.zeros(layer.kernel.shape)
        kernel[..., :UNITS] = to_numpy(convolution.kernel)
        layer.kernel.assign(kernel)
        layer.bias.assign(np.repeat([0, -1e4], UNITS))
        assert_close("outputs", layer(x), expected)
