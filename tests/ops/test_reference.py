"""The reference's own gradients, against central differences in float64."""

import numpy as np
import pytest

from tests import reference

pytestmark = pytest.mark.one_backend


@pytest.mark.parametrize("pooling", ["f", "fo", "ifo"])
@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize("update_scale", [None, 0.8, "mask"])
@pytest.mark.parametrize("padding", ["causal", "same"])
def test_gradients(pooling, window, update_scale, padding):
    rng = np.random.default_rng(0)
    batch, time, features, units = 2, 5, 3, 2
    channels = len(reference.GATES[pooling]) * units
    arguments = {
        "x": rng.normal(size=(batch, time, features)),
        "kernel": rng.normal(size=(window, features, channels)),
        # With a context, each sequence has a bias of its own too.
        "bias": rng.normal(size=channels if window == 1 else (batch, channels)),
        "cell": rng.normal(size=(batch, units)),
        "window": rng.normal(size=(batch, window - 1, features)),
    }
    if window > 1:
        arguments["context"] = rng.normal(size=(batch, 4))
        arguments["context_kernel"] = rng.normal(size=(4, channels))
    mask = np.array([[1, 0, 1, 1, 0], [0, 1, 1, 0, 1]], bool)
    if update_scale == "mask":
        update_scale = (rng.uniform(size=(batch, time, units)) > 0.3).astype(float)
    previous = np.zeros((batch, units))
    d_outputs = rng.normal(size=(batch, time, units))
    d_cell = rng.normal(size=(batch, units))

    def run(**gradient):
        return reference.qrnn(
            **arguments, pooling=pooling, mask=mask, update_scale=update_scale,
            previous_output=previous, padding=padding, **gradient,
        )  # fmt: skip

    def loss():
        result = run()
        return np.sum(result.outputs * d_outputs) + np.sum(result.cell * d_cell)

    gradients = run(d_outputs=d_outputs, d_cell=d_cell).gradients
    if padding == "same":
        del arguments["window"]
        assert not gradients["window"].any()
    for name, array in arguments.items():
        for index in np.ndindex(array.shape):
            value = array[index]
            array[index] = value + 1e-6
            above = loss()
            array[index] = value - 1e-6
            below = loss()
            array[index] = value
            expected = (above - below) / 2e-6
            assert abs(gradients[name][index] - expected) < 1e-7, (name, index)


@pytest.mark.parametrize(
    ("window", "padding", "zero_output_for_mask"),
    [(1, "causal", True), (3, "causal", False), (2, "same", False)],
)
def test_gradients_of_attention(window, padding, zero_output_for_mask):
    rng = np.random.default_rng(0)
    batch, time, source_time, features, units = 3, 4, 3, 2, 2
    arguments = {
        "x": rng.normal(size=(batch, time, features)),
        "kernel": rng.normal(size=(window, features, 3 * units)),
        "bias": rng.normal(size=3 * units),
        "output_kernel": rng.normal(size=(2 * units, units)),
        "source": rng.normal(size=(batch, source_time, units)),
        "cell": rng.normal(size=(batch, units)),
        "context": rng.normal(size=(batch, 3)),
        "context_kernel": rng.normal(size=(3, 3 * units)),
    }
    if padding == "causal":
        arguments["window"] = rng.normal(size=(batch, window - 1, features))
    others = {
        "mask": np.array([[0, 1, 0, 1], [1, 0, 1, 0], [1, 1, 1, 1]], bool),
        "source_mask": np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1]], bool),
        "update_scale": 0.8,
        "zero_output_for_mask": zero_output_for_mask,
        "padding": padding,
    }
    weights = {
        "d_outputs": rng.normal(size=(batch, time, units)),
        "d_cell": rng.normal(size=(batch, units)),
        "d_attention": rng.normal(size=(batch, time, source_time)),
    }

    def loss():
        result = reference.attention_qrnn(**arguments, **others)
        results = result.outputs, result.cell, result.attention
        return sum(map(np.vdot, results, weights.values()))

    result = reference.attention_qrnn(**arguments, **others, **weights)
    sums = result.attention.sum(-1)
    expected = others["mask"] & others["source_mask"].any(1, keepdims=True)
    np.testing.assert_allclose(sums, expected)
    for name, array in arguments.items():
        for index in np.ndindex(array.shape):
            value = array[index]
            array[index] = value + 1e-6
            above = loss()
            array[index] = value - 1e-6
            below = loss()
            array[index] = value
            difference = (above - below) / 2e-6
            assert abs(result.gradients[name][index] - difference) < 1e-7, (name, index)


@pytest.mark.parametrize("reverse", [False, True])
def test_scan_gradients(reverse):
    rng = np.random.default_rng(1)
    shape = (2, 4, 3)
    arguments = [
        rng.uniform(size=shape),
        rng.normal(size=shape),
        rng.normal(size=(2, 3)),
    ]
    d_states = rng.normal(size=shape)
    gradients = reference.linear_scan_gradients(*arguments, d_states, reverse)
    for array, gradient in zip(arguments, gradients, strict=True):
        for index in np.ndindex(array.shape):
            value = array[index]
            array[index] = value + 1e-6
            above = np.sum(reference.linear_scan(*arguments, reverse) * d_states)
            array[index] = value - 1e-6
            below = np.sum(reference.linear_scan(*arguments, reverse) * d_states)
            array[index] = value
            assert abs(gradient[index] - (above - below) / 2e-6) < 1e-7
