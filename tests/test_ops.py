"""`linear_scan` and the poolings against the step-by-step reference."""

import sys
from functools import partial

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

import keras_qrnn
from keras_qrnn.ops.backend import backend as active
from keras_qrnn.ops.blocks import SMALL_STEP, is_cut_in_blocks, piece_length
from tests import reference
from tests.gradients import second_gradients, value_and_gradients

differentiable = pytest.mark.skipif(
    keras.config.backend() == "numpy", reason="the NumPy backend has no gradients"
)
# The module that has the backend's cross-entropy.
HOME_OF_THE_LOSS = sys.modules[active.cross_entropy.__module__]
POOLS = {"f": keras_qrnn.f_pool, "fo": keras_qrnn.fo_pool, "ifo": keras_qrnn.ifo_pool}

shapes = st.tuples(
    st.integers(1, 3),
    st.one_of(st.integers(1, 6), st.integers(60, 90)),
    st.integers(1, 4),
)


def scan_arguments(shape, dtype="float32"):
    rng = np.random.default_rng(sum(shape))
    batch, _, units = shape
    arrays = (rng.uniform(size=shape), rng.normal(size=shape))
    return [a.astype(dtype) for a in (*arrays, rng.normal(size=(batch, units)))]


def assert_close(got, expected, tolerance=1e-5):
    got = ops.convert_to_numpy(ops.cast(got, "float64"))
    scale = max(1.0, np.abs(expected).max())
    assert got.shape == np.shape(expected)
    assert np.abs(got - expected).max() <= tolerance * scale


@given(shape=shapes, reverse=st.booleans())
def test_scan_values(shape, reverse):
    arrays = scan_arguments(shape)
    states = keras_qrnn.linear_scan(*arrays, reverse=reverse)
    assert_close(states, reference.linear_scan(*arrays, reverse))


@differentiable
@given(shape=shapes, reverse=st.booleans())
def test_scan_gradients(shape, reverse):
    arrays = scan_arguments(shape)
    weight = np.random.default_rng(9).normal(size=shape).astype("float32")

    def loss(*tensors):
        states = keras_qrnn.linear_scan(*tensors, reverse=reverse)
        return ops.sum(states * ops.convert_to_tensor(weight))

    _, gradients = value_and_gradients(loss, arrays)
    expected = reference.linear_scan_gradients(*arrays, weight, reverse)
    for got, want in zip(gradients, expected, strict=True):
        assert_close(got, want)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_scan_accumulates(dtype):
    """A long half-precision sum of small steps: exact only in float32."""
    if dtype == "bfloat16" and keras.config.backend() == "numpy":
        pytest.skip("NumPy has no bfloat16")
    shape = (1, 1000, 1)
    inputs = ops.cast(np.full(shape, 2.0**-8), dtype)
    states = keras_qrnn.linear_scan(ops.cast(np.ones(shape), dtype), inputs)
    assert keras.backend.standardize_dtype(states.dtype) == dtype
    got = ops.convert_to_numpy(ops.cast(states, "float64"))[0, :, 0]
    expected = np.arange(1, 1001) * 2.0**-8
    tolerance = {"float16": 2**-11, "bfloat16": 2**-8, "float64": 1e-12}[dtype]
    assert np.abs(got / expected - 1).max() <= tolerance


def test_initial_state_defaults_to_zeros():
    decay, inputs, state = scan_arguments((2, 5, 3))
    assert_close(
        keras_qrnn.linear_scan(decay, inputs),
        reference.linear_scan(decay, inputs, np.zeros_like(state)),
    )


def test_what_is_cut_in_blocks():
    assert is_cut_in_blocks(64, SMALL_STEP)
    assert not is_cut_in_blocks(64, SMALL_STEP + 1)
    assert not is_cut_in_blocks(63, 1)
    assert not is_cut_in_blocks(None, 1)
    assert not is_cut_in_blocks(64, None)


def test_piece_length():
    assert piece_length(100, 8, 1024) == 100
    assert piece_length(200, 8, 1024) == 128
    assert piece_length(200, 5000, 1024) == 1
    assert piece_length(200, None, 1024) == 200
    assert piece_length(None, 8, 1024) is None


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("time", [64, 65, 72, 80, 81, 300, 1100])
def test_blocked_scan_equals_sequential(time, reverse):
    narrow = scan_arguments((1, time, 3))
    wide = [np.tile(a, (1,) * (a.ndim - 1) + (SMALL_STEP,)) for a in narrow]
    blocked = keras_qrnn.linear_scan(*narrow, reverse=reverse)
    sequential = keras_qrnn.linear_scan(*wide, reverse=reverse)
    assert_close(blocked, ops.convert_to_numpy(sequential)[..., :3])


@pytest.mark.skipif(keras.config.backend() != "jax", reason="a scan of JAX")
@pytest.mark.parametrize("reverse", [False, True])
def test_associative_scan_equals_sequential(reverse):
    """JAX takes the first on accelerators, the second on the CPU."""
    tensors = [ops.convert_to_tensor(a) for a in scan_arguments((2, 37, 3))]
    expected = ops.convert_to_numpy(active._sequential(*tensors, reverse))
    assert_close(active._associative(*tensors, reverse), expected)


@pytest.mark.skipif(keras.config.backend() != "jax", reason="a compilation of JAX")
def test_eager_scans_compile_once():
    arguments = scan_arguments((2, 11, 3))
    keras_qrnn.linear_scan(*arguments)
    compiled = active._scan._cache_size()
    for _ in range(3):
        keras_qrnn.linear_scan(*arguments)
    assert active._scan._cache_size() == compiled


@pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="a choice of TensorFlow"
)
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("window", [1, 2, 3])
def test_convolution_equals_tensorflows(window, known):
    """Values, gradients and those of second order; a graph may not know the sizes."""
    import tensorflow as tf

    rng = np.random.default_rng(window)
    shapes = [(2, 7, 3), (window, 3, 8)]
    arrays = [rng.normal(size=shape).astype("float32") for shape in shapes]

    def loss(convolution):
        return lambda *tensors: ops.sum(ops.sin(convolution(*tensors)))

    signature = [tf.TensorSpec((None, None, 3)), tf.TensorSpec(shapes[1])]
    own = tf.function(active._convolution, input_signature=None if known else signature)
    plain = partial(tf.nn.conv1d, stride=1, padding="VALID")
    (value, first), (expected_value, expected_first) = (
        value_and_gradients(loss(f), arrays) for f in (own, plain)
    )
    second, expected_second = (second_gradients(loss(f), arrays) for f in (own, plain))
    got = [value, *first, *second]
    expected = [expected_value, *expected_first, *expected_second]
    for g, e in zip(got, expected, strict=True):
        assert_close(g, e)


@pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="a choice of TensorFlow"
)
def test_xla_compiles_what_has_a_known_length():
    import tensorflow as tf

    def compiled(time):
        scan = tf.function(lambda x: active.linear_scan(x, x, x[:, 0], False))
        traced = scan.get_concrete_function(tf.TensorSpec((None, time, 3)))
        functions = traced.graph.as_graph_def().library.function
        return [len(f.node_def) for f in functions if f.attr["_XlaMustCompile"].b]

    assert compiled(None) == []
    assert bool(compiled(8)) == (sys.platform != "darwin" and not active._has_gpu())
    assert compiled(8) == compiled(512)  # what is compiled does not grow


def pool_arguments(pooling, shape, activated):
    rng = np.random.default_rng(len(pooling))
    gates = [rng.normal(size=shape) for _ in reference.GATES[pooling]]
    if activated:
        gates = [np.tanh(gates[0]), *map(reference.sigmoid, gates[1:])]
    state = rng.normal(size=(shape[0], shape[2]))
    return [a.astype("float32") for a in (*gates, state)]


def naive_pool(pooling, gates, state, update_scale=1.0):
    """The paper's equations in keras.ops, differentiated by the backend."""
    z, f, *rest = gates
    f = 1 - update_scale * (1 - f)
    i = update_scale * rest[1] if pooling == "ifo" else 1 - f
    cells = []
    for t in range(z.shape[1]):
        state = f[:, t] * state + i[:, t] * z[:, t]
        cells.append(state)
    cells = ops.stack(cells, axis=1)
    return (cells if pooling == "f" else rest[0] * cells), state


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
    want = value_and_gradients(lambda *a: loss(naive, *a), arrays)
    assert_close(got[0], want[0])
    for g, w in zip(got[1], want[1], strict=True):
        assert_close(g, w)


@differentiable
@pytest.mark.parametrize("pooling", POOLS)
@pytest.mark.parametrize("by", [slice(None), slice(-1), slice(-1, None)])
def test_second_gradients(pooling, by):
    """Through the backend's own autodiff of the equations, and through ours.

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
    want = second_gradients(loss(naive), arrays[by])
    for g, w in zip(got, want, strict=True):
        assert np.abs(w).max() > 1e-3
        assert_close(g, w, 1e-4)


@pytest.mark.parametrize("target", [3, -1, -100])
def test_cross_entropy_of_no_class(target):
    logits, targets = ops.zeros((1, 2, 3)), ops.convert_to_tensor([[2, target]])
    if keras.config.backend() in ("torch", "numpy"):
        with pytest.raises((IndexError, RuntimeError)):
            active.cross_entropy(logits, targets)
        return
    losses = active.cross_entropy(logits, targets)  # XLA raises no errors
    assert np.isfinite(losses[0, 0])
    assert np.isnan(losses[0, 1])


def cross_entropy_arguments(batch, time, classes):
    rng = np.random.default_rng(batch + time + classes)
    logits = rng.normal(0, 20, (batch, time, classes)).astype("float32")
    return logits, rng.integers(0, classes, (batch, time)).astype("int32")


sizes = st.integers(1, 7)
pieces = st.sampled_from([1, 30, 2**19])
# Each shape is compiled.
few = settings(max_examples=10)


@few
@given(batch=sizes, time=sizes, classes=sizes, piece=pieces)
def test_cross_entropy_values(batch, time, classes, piece):
    logits, targets = cross_entropy_arguments(batch, time, classes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HOME_OF_THE_LOSS, "PIECE_LOGITS", piece, raising=False)
        losses = active.cross_entropy(*map(ops.convert_to_tensor, (logits, targets)))
    assert_close(losses, reference.cross_entropy(logits, targets)[0])


@differentiable
@few
@given(batch=sizes, time=sizes, classes=sizes, piece=pieces)
def test_cross_entropy_gradient(batch, time, classes, piece):
    logits, targets = cross_entropy_arguments(batch, time, classes)
    weight = np.random.default_rng(9).normal(size=targets.shape).astype("float32")

    def loss(logits):
        losses = active.cross_entropy(logits, ops.convert_to_tensor(targets))
        return ops.sum(losses * ops.convert_to_tensor(weight))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HOME_OF_THE_LOSS, "PIECE_LOGITS", piece, raising=False)
        _, [gradient] = value_and_gradients(loss, [logits])
    _, by_logits = reference.cross_entropy(logits, targets)
    assert_close(gradient, weight[..., None] * by_logits)


@differentiable
def test_second_gradients_of_the_cross_entropy():
    logits, targets = cross_entropy_arguments(2, 3, 4)
    logits /= 20

    def loss(cross_entropy):
        return lambda logits: ops.sum(ops.sin(cross_entropy(logits)))

    def plain(logits):
        targeted = ops.one_hot(targets, 4)
        return ops.logsumexp(logits, axis=-1) - ops.sum(targeted * logits, axis=-1)

    def fast(logits):
        return active.cross_entropy(logits, ops.convert_to_tensor(targets))

    [got], [expected] = (second_gradients(loss(f), [logits]) for f in (fast, plain))
    assert_close(got, expected)


@differentiable
def test_second_gradients_of_the_scan():
    arrays = scan_arguments((2, 5, 3))

    def loss(*tensors):
        return ops.sum(keras_qrnn.linear_scan(*tensors) ** 2)

    def naive(decay, inputs, state):
        total = 0
        for t in range(inputs.shape[1]):
            state = decay[:, t] * state + inputs[:, t]
            total = total + ops.sum(state**2)
        return total

    got, want = second_gradients(loss, arrays), second_gradients(naive, arrays)
    for g, w in zip(got, want, strict=True):
        assert_close(g, w, 1e-4)


@pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="a choice of TensorFlow"
)
def test_second_gradients_after_another_batch():
    """What has been compiled for batches of any size is taken for one of known size."""
    import tensorflow as tf

    arrays = scan_arguments((2, 9, 6))[1:]
    arrays = [arrays[0], arrays[1][:, :3]]

    def loss(gates, state):
        outputs, last = active.pool(gates, state, None, "f", activate=True)
        return ops.sum(outputs**2) + ops.sum(last**3)

    want = second_gradients(loss, arrays)
    signature = [tf.TensorSpec((None, 9, 6)), tf.TensorSpec((None, 3))]
    active._by_xla.cache_clear()
    tf.function(loss, input_signature=signature, autograph=False)(*arrays)
    for got, expected in zip(second_gradients(loss, arrays), want, strict=True):
        assert_close(got, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones((2, 3)), np.ones((2, 3))), r"`inputs` must have shape \(batch, time"),
        ((np.ones((2, 0, 3)), np.ones((2, 0, 3))), "at least one time step"),
        ((np.ones((2, 4, 3)), np.ones((2, 5, 3))), "same shape and dtype"),
        ((np.ones((2, 4, 3)), np.ones((2, 4, 3), "float32")), "same shape and dtype"),
        ((np.ones((2, 4, 3), int), np.ones((2, 4, 3), int)), "must have a float dtype"),
        ((np.ones((2, 4, 3)), np.ones((2, 4, 3)), np.ones((2, 4))), "`initial_state`"),
    ],
)
def test_scan_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        keras_qrnn.linear_scan(*arguments)


def test_pool_refuses():
    z = np.ones((2, 4, 3), "float32")
    with pytest.raises(ValueError, match="`f` and `z` must have the same shape"):
        keras_qrnn.fo_pool(z, z[:, 1:], z)
    with pytest.raises(ValueError, match="`initial_state`"):
        keras_qrnn.f_pool(z, z, np.ones((3, 3), "float32"))


@pytest.mark.parametrize("function", [keras_qrnn.linear_scan, keras_qrnn.f_pool])
def test_symbolic_inputs_are_refused(function):
    x = keras.Input((4, 2))
    with pytest.raises(ValueError, match="Expected a call from within a layer"):
        function(x, x)
