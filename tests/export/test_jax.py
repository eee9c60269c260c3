"""JAX: what is exported runs without this package."""

import functools
import sys

import keras
import numpy as np
import pytest

if keras.config.backend() != "jax":
    pytest.skip("exports of JAX", allow_module_level=True)

import jax
from jax import export

from keras_qrnn import QRNN
from keras_qrnn.ops import jax_onnx
from tests.assertions import assert_close


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_export_of_any_batch_and_time(window, masked):
    """Values and the gradient by the inputs, for symbolic sizes."""
    layer = QRNN(4, window, return_sequences=True)
    layer.build((None, None, 3))
    batch, time, _ = shape = export.symbolic_shape("batch, time, 3")
    arguments = [jax.ShapeDtypeStruct(shape, "float32")]
    rng = np.random.default_rng(0)
    values = [rng.normal(size=(2, 7, 3)).astype("float32")]
    if masked:
        arguments.append(jax.ShapeDtypeStruct((batch, time), "bool"))
        values.append(rng.random((2, 7)) < 0.6)

    def call(x, mask=None):
        return layer(x, mask=mask)

    exported = export.export(jax.jit(call))(*arguments)
    outputs, pullback = jax.vjp(lambda x: call(x, *values[1:]), values[0])
    assert_close("outputs", exported.call(*values), outputs, 1e-6)
    above = rng.normal(size=outputs.shape).astype("float32")
    got, expected = exported.vjp().call(*values, above)[0], pullback(above)[0]
    assert_close("d_x", got, expected)


@pytest.mark.parametrize("time", [1, 7, 64])
def test_valid_steps_without_a_sort(time):
    """Also where the number of steps is a symbol."""
    rng = np.random.default_rng(0)
    mask = rng.random((9, time)) > np.linspace(-0.1, 1.1, 9)[:, None]
    want = np.sort(np.where(mask, np.arange(time), time), 1)
    assert (jax_onnx.valid_first(mask) == want).all()
    symbol = jax.ShapeDtypeStruct(export.symbolic_shape("batch, time"), "bool")
    exported = export.export(jax.jit(jax_onnx.valid_first))(symbol)
    assert (exported.call(mask) == want).all()


@pytest.mark.parametrize("padding", ["causal", "same"])
def test_forms_for_onnx(padding, monkeypatch):
    """What jax2onnx traces has no operation that it cannot convert."""
    layer = QRNN(4, 3, "ifo", padding=padding, return_sequences=True)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 9, 3)).astype("float32")
    mask = rng.random((3, 9)) < 0.6
    mask[1] = False
    layer.build(x.shape)
    want = jax.jit(lambda x, mask: layer(x, mask=mask))(x, mask)
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    scope = {"__name__": "jax2onnx.tracing", "layer": layer, "jax": jax}
    exec("def call(x, mask): return layer(x, mask=mask)", scope)  # as by that module
    traced = jax.make_jaxpr(scope["call"])(x, mask)
    again = functools.partial(jax.core.eval_jaxpr, traced.jaxpr, traced.consts)
    (got,) = jax.jit(again)(x, mask)
    assert_close("outputs", got, want)
    for name in ("platform_index", "sort", "while"):
        assert f" {name}[" not in str(traced), name
    assert " scan[" in str(traced)
