"""The poolings against the step-by-step reference and the backend's own gradients."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_qrnn
from keras_qrnn.ops.backend import backend as active
from tests import reference
from tests.assertions import assert_close
from tests.gradients import second_gradients, value_and_gradients

differentiable = pytest.mark.skipif(
    keras.config.backend() == "numpy", reason="the NumPy backend has no gradients"
)

POOLS = {"f": keras_qrnn.f_pool, "fo": keras_qrnn.fo_pool, "ifo": keras_qrnn.ifo_pool}


def names_of(pooling):
    return [*reference.GATES[pooling], "initial_state"]


def pool_arguments(pooling, shape, activated):
    rng = np.random.default_rng(len(pooling))
    gates = [rng.normal(size=shape) for _ in reference.GATES[pooling]]
    if activated:
        gates = [np.tanh(gates[0]), *map(reference.sigmoid, gates[1:])]
    state = rng.normal(size=(shape[0], shape[2]))
    return [a.astype("float32") for a in (*gates, state)]


def naive_pool(pooling, gates, state, update_scale=1.0):
    """The paper's equations in `keras.ops`. The backend differentiates them."""
    z, f, *rest = gates
    f = 1 - update_scale * (1 - f)
    i = update_scale * rest[1] if pooling == "ifo" else 1 - f
    cells, state = [], state[:, None]
    # Split and not indexed: JAX would compile each index.
    steps = [ops.split(each, z.shape[1], axis=1) for each in (f, i * z)]
    for decay, inputs in zip(*steps, strict=True):
        state = decay * state + inputs
        cells.append(state)
    cells = ops.concatenate(cells, axis=1)
    return (cells if pooling == "f" else rest[0] * cells), state[:, 0]


EXPECTED = {}


def of_the_equations(key, compute):
    """What `compute` gives, computed once: other kernels run these tests again."""
    if key not in EXPECTED:
        EXPECTED[key] = compute()
    return EXPECTED[key]


@differentiable
@pytest.mark.parametrize(
    ("batch", "time"), [(2, 1), (2, 7), (2, 70), (600, 8), (2000, 2)]
)
@pytest.mark.parametrize("pooling", POOLS)
def test_pool_values_and_gradients(pooling, batch, time):
    shape = (batch, time, 3)
    arrays = pool_arguments(pooling, shape, activated=True)
    rng = np.random.default_rng(3)
    weights = rng.normal(size=shape), rng.normal(size=(batch, 3))
    weights = [w.astype("float32") for w in weights]

    def loss(pool, *tensors):
        outputs, state = pool(*tensors)
        return sum(
            ops.sum(x * ops.convert_to_tensor(w))
            for x, w in zip((outputs, state), weights, strict=True)
        )

    def naive(*tensors):
        return naive_pool(pooling, tensors[:-1], tensors[-1])

    got = value_and_gradients(lambda *a: loss(POOLS[pooling], *a), arrays)
    want = of_the_equations(
        (pooling, batch, time),
        lambda: value_and_gradients(lambda *a: loss(naive, *a), arrays, jit=False),
    )
    assert_close("loss", got[0], want[0])
    for name, g, w in zip(names_of(pooling), got[1], want[1], strict=True):
        assert_close(f"d_{name}", g, w)


@differentiable
@pytest.mark.parametrize("pooling", POOLS)
@pytest.mark.parametrize("by", [slice(None), slice(-1), slice(-1, None)])
def test_second_gradients(pooling, by):
    """The backend differentiates the equations, and our functions, twice.

    By all arguments, by the gates alone and by the state alone.
    """
    arrays = pool_arguments(pooling, (2, 4, 3), activated=False)

    def loss(pool):
        def function(*tensors):
            every = [ops.convert_to_tensor(a) for a in arrays]
            every[by] = tensors
            outputs, state = pool(every[:-1], every[-1])
            return ops.sum(outputs**2) + ops.sum(state**3)

        return function

    def fused(gates, state):
        packed = ops.concatenate(gates, axis=-1)
        return active.pool(packed, state, 0.75, pooling, activate=True)

    def naive(gates, state):
        gates = [ops.tanh(gates[0]), *map(ops.sigmoid, gates[1:])]
        return naive_pool(pooling, gates, state, 0.75)

    got = second_gradients(loss(fused), arrays[by])
    want = of_the_equations(
        (pooling, str(by)), lambda: second_gradients(loss(naive), arrays[by])
    )
    for name, g, w in zip(names_of(pooling)[by], got, want, strict=True):
        assert np.abs(w).max() > 1e-3
        assert_close(f"second derivative by {name}", g, w, 1e-4)


def test_pool_refuses():
    z = np.ones((2, 4, 3), "float32")
    with pytest.raises(ValueError, match="`f` and `z` must have the same shape"):
        keras_qrnn.fo_pool(z, z[:, 1:], z)
    with pytest.raises(ValueError, match="`initial_state`"):
        keras_qrnn.f_pool(z, z, np.ones((3, 3), "float32"))


@pytest.mark.parametrize("ulps", [1, 8])
@pytest.mark.parametrize("pooling", ["f", "fo"])
def test_forget_gates_near_one(pooling, ulps):
    """1 - f keeps its digits, and so do the small states that follow from it."""
    z = np.random.default_rng(4).uniform(0.1, 1, (2, 50, 3)).astype("float32")
    f = np.full(z.shape, 1 - ulps * 2.0**-23, "float32")
    o = [np.ones(z.shape, "float32")] * (pooling == "fo")
    outputs, last = POOLS[pooling](z, f, *o)
    decay, zeros = f.astype("float64"), np.zeros((2, 3))
    expected = reference.linear_scan(decay, (1 - decay) * z, zeros)
    scale = expected.max()
    outputs, last = map(ops.convert_to_numpy, (outputs, last))
    assert_close("outputs", outputs / scale, expected / scale, 2e-5)
    assert_close("last", last / scale, expected[:, -1] / scale, 2e-5)


@differentiable
@pytest.mark.parametrize("pooling", ["f", "fo"])
def test_gradients_at_forget_gates_near_one(pooling):
    """The gradient by z is a product with 1 - f."""
    rng = np.random.default_rng(5)
    shape = (1, 20, 3)
    z = rng.normal(size=shape).astype("float32")
    f = np.full(shape, 1 - 2.0**-22, "float32")
    o = [np.ones(shape, "float32")] * (pooling == "fo")
    weight = rng.uniform(0.1, 1, shape).astype("float32")

    def loss(*tensors):
        outputs, _ = POOLS[pooling](*tensors)
        return ops.sum(outputs * ops.convert_to_tensor(weight))

    _, gradients = value_and_gradients(loss, [z, f, *o])
    decay = f.astype("float64")
    arguments = decay, (1 - decay) * z, np.zeros((1, 3)), weight
    d_decay, d_inputs, _ = reference.linear_scan_gradients(*arguments)
    scale = np.abs(d_inputs * (1 - decay)).max()
    assert_close("d_z", gradients[0] / scale, d_inputs * (1 - decay) / scale, 2e-5)
    assert_close("d_f", gradients[1], d_decay - d_inputs * z)


LOGITS = np.array([-30, -12, -1, 0, 1, 12, 16, 20], "float32")


@pytest.mark.parametrize("pooling", POOLS)
def test_update_comes_from_the_negated_logit(pooling):
    """A float32 f of 1 - 2e-9 is 1. Computed from f, the unit would never change."""
    logits = np.tile(LOGITS, (1, 4, 1))
    ones = np.full(logits.shape, 30, "float32")
    gates = [ones, logits, *[ones] * (len(reference.GATES[pooling]) - 2)]
    packed = ops.convert_to_tensor(np.concatenate(gates, axis=-1))
    state = np.full((1, len(LOGITS)), 0.0 if pooling != "ifo" else 2.0, "float32")
    outputs, _ = active.pool(packed, ops.convert_to_tensor(state), None, pooling, True)
    got = ops.convert_to_numpy(outputs)
    update = reference.sigmoid(-logits.astype("float64"))
    inputs = update if pooling != "ifo" else np.ones(update.shape)
    expected = reference.linear_scan(1 - update, inputs, state.astype("float64"))
    np.testing.assert_allclose(got, expected, rtol=2e-6)


@differentiable
def test_gradients_by_large_forget_logits():
    """The derivative by the logit is u (1 - u), with all the digits of u = 1 - f."""
    logits = np.tile(LOGITS, (1, 4, 1))
    packed = np.concatenate([np.full(logits.shape, 0.5, "float32"), logits], -1)
    weight = np.random.default_rng(6).uniform(0.1, 1, logits.shape).astype("float32")
    state = np.zeros((1, len(LOGITS)), "float32")

    def loss(packed, state):
        outputs, _ = active.pool(packed, state, None, "f", True)
        return ops.sum(outputs * ops.convert_to_tensor(weight))

    _, (d_packed, _) = value_and_gradients(loss, [packed, state])
    z, update = np.tanh(0.5), reference.sigmoid(-logits.astype("float64"))
    arguments = 1 - update, update * z, state.astype("float64"), weight
    d_decay, d_inputs, _ = reference.linear_scan_gradients(*arguments)
    d_logit = (d_decay - d_inputs * z) * update * (1 - update)
    d_z, d_f = np.split(np.asarray(d_packed), 2, axis=-1)
    np.testing.assert_allclose(d_z, d_inputs * update * (1 - z * z), rtol=5e-6)
    kept = LOGITS > 1  # elsewhere the state is close to z, and their difference small
    np.testing.assert_allclose(d_f[..., kept], d_logit[..., kept], rtol=5e-6)


@pytest.mark.parametrize("pooling", POOLS)
def test_a_batch_without_rows(pooling):
    gates = [ops.zeros((0, 4, 3))] * len(reference.GATES[pooling])
    outputs, last = POOLS[pooling](*gates)
    assert tuple(outputs.shape) == (0, 4, 3)
    assert tuple(last.shape) == (0, 3)
    states = keras_qrnn.linear_scan(*gates[:2])
    assert tuple(states.shape) == (0, 4, 3)


@differentiable
@pytest.mark.parametrize("pooling", POOLS)
def test_one_step(pooling):
    """It has a path of its own. Under fo-pooling each sequence has its own bias."""
    rng = np.random.default_rng(7)
    batch, window, features, units = 3, 2, 4, 5
    channels = len(reference.GATES[pooling]) * units
    scale = {"f": None, "fo": rng.uniform(size=(batch, 1, units)) < 0.6, "ifo": 0.7}
    scale = scale[pooling]
    bias = (batch, channels) if pooling == "fo" else (channels,)
    shapes = (batch, window, features), (window, features, channels), bias
    shapes = (*shapes, (batch, units))
    arrays = [rng.normal(size=shape).astype("float32") for shape in shapes]
    weights = [
        rng.normal(size=(batch, *s, units)).astype("float32") for s in ((1,), ())
    ]

    def loss(*tensors):
        given = ops.convert_to_tensor(scale) if pooling == "fo" else scale
        results = active.conv_pool(*tensors, given, pooling)
        pairs = zip(results, weights, strict=True)
        return sum(ops.sum(x * ops.convert_to_tensor(w)) for x, w in pairs)

    value, gradients = value_and_gradients(loss, arrays)
    inputs, kernel, bias, cell = (a.astype("float64") for a in arrays)
    want = reference.qrnn(
        inputs[:, 1:], kernel, bias, pooling, cell, inputs[:, :1],
        update_scale=scale, d_outputs=weights[0], d_cell=weights[1],
    )  # fmt: skip
    total = np.sum(want.outputs * weights[0]) + np.sum(want.cell * weights[1])
    assert_close("loss", value, total)
    found = want.gradients
    found["inputs"] = np.concatenate([found["window"], found["x"]], axis=1)
    names = ("inputs", "kernel", "bias", "cell")
    for name, gradient in zip(names, gradients, strict=True):
        assert_close(f"d_{name}", gradient, found[name])
