"""`linear_scan` against the step-by-step reference."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

import keras_qrnn
from keras_qrnn.ops.blocks import SMALL_STEP, is_cut_in_blocks, piece_length
from tests import reference
from tests.assertions import assert_close
from tests.gradients import second_gradients, value_and_gradients

differentiable = pytest.mark.skipif(
    keras.config.backend() == "numpy", reason="the NumPy backend has no gradients"
)

# JAX compiles each shape anew: few sizes, and blocks of time with them.
shapes = st.sampled_from([(1, 1, 3), (2, 5, 3), (3, 66, 2), (1, 81, 4)])
NAMES = ("decay", "inputs", "initial_state")
# Around the ends of the blocks of TensorFlow and PyTorch; JAX and NumPy cut none.
CUTS = keras.config.backend() in ("tensorflow", "torch")
BLOCKED_TIMES = [64, 65, 72, 80, 81, 300, 1100] if CUTS else [65, 300]


def scan_arguments(shape, dtype="float32"):
    rng = np.random.default_rng(sum(shape))
    batch, _, units = shape
    arrays = (rng.uniform(size=shape), rng.normal(size=shape))
    return [a.astype(dtype) for a in (*arrays, rng.normal(size=(batch, units)))]


@given(shape=shapes, reverse=st.booleans())
def test_scan_values(shape, reverse):
    arrays = scan_arguments(shape)
    states = keras_qrnn.linear_scan(*arrays, reverse=reverse)
    assert_close("states", states, reference.linear_scan(*arrays, reverse))


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
    for name, got, want in zip(NAMES, gradients, expected, strict=True):
        assert_close(f"d_{name}", got, want)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_scan_accumulates(dtype):
    """A long sum of small steps in half precision is exact only in float32."""
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
        "states",
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
@pytest.mark.parametrize("time", BLOCKED_TIMES)
def test_blocked_scan_equals_sequential(time, reverse):
    """A wide scan is not cut in blocks. Its states are narrow ones side by side."""
    narrow = scan_arguments((1, time, 3))
    expected = reference.linear_scan(*narrow, reverse)
    assert_close("states", keras_qrnn.linear_scan(*narrow, reverse=reverse), expected)
    if time == 65:
        copies = SMALL_STEP // 3 + 1
        wide = [np.tile(a, (1,) * (a.ndim - 1) + (copies,)) for a in narrow]
        states = keras_qrnn.linear_scan(*wide, reverse=reverse)
        assert_close("wide states", states, np.tile(expected, (1, 1, copies)))


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
    for name, g, w in zip(NAMES, got, want, strict=True):
        assert_close(f"second derivative by {name}", g, w, 1e-4)


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


@pytest.mark.parametrize("function", [keras_qrnn.linear_scan, keras_qrnn.f_pool])
def test_symbolic_inputs_are_refused(function):
    x = keras.Input((4, 2))
    with pytest.raises(ValueError, match="Expected a call from within a layer"):
        function(x, x)
