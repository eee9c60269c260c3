"""`torch.autocast` around a layer."""

from functools import partial

import keras
import pytest

if keras.config.backend() != "torch":
    pytest.skip("torch.autocast is PyTorch's", allow_module_level=True)

import torch

from keras_qrnn import QRNN
from keras_qrnn.ops.torch import causal_conv, conv_pool
from tests.assertions import assert_close
from tests.ops.torch.kernels import DEVICE

HALF = {"bfloat16": 3e-2, "float16": 4e-3}


def results_and_gradients(call, layer, x):
    x = x.detach().requires_grad_()
    outputs = call(x)
    weights = [x, layer.kernel.value, layer.bias.value]
    return outputs, torch.autograd.grad(outputs.float().square().sum(), weights)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", HALF)
def test_autocast(dtype, compiled):
    """The results have the layer's dtype, as those of `keras.layers.LSTM` have."""
    layer = QRNN(5, 3, "ifo", return_sequences=True)
    x = torch.rand(4, 6, 3, device=DEVICE)
    vectors = torch.rand(4, 2, device=DEVICE) if dtype == "bfloat16" else None
    call = partial(layer, context=vectors)
    want, expected = results_and_gradients(call, layer, x)
    if compiled:
        torch._dynamo.reset()
        run = torch.compile(layer, backend="aot_eager", fullgraph=True)
        call = partial(run, context=vectors)
    context = torch.autocast(DEVICE, dtype=getattr(torch, dtype))
    with context:
        outputs, gradients = results_and_gradients(call, layer, x)  # backward inside
    with context:
        source = x.clone().requires_grad_()
        loss = call(source).square().sum()
    (outside,) = torch.autograd.grad(loss, source)
    with context, torch.no_grad():
        inference = call(x)
    assert outputs.dtype == inference.dtype == torch.float32
    room = HALF[dtype]
    assert_close("outputs", outputs, want, room)
    assert_close("inference", inference, want, room)
    assert float((outputs - want).abs().max()) > 1e-6  # it did act
    for name, g, w in zip(("x", "kernel", "bias"), gradients, expected, strict=True):
        assert g.dtype == torch.float32
        assert_close(name, g, w, room)
    assert_close("x", outside, expected[0], room)


def test_a_gradient_inside_autocast_of_a_layer_outside():
    layer = QRNN(5, 3, return_sequences=True)
    source = torch.rand(4, 6, 3, device=DEVICE).requires_grad_()
    loss = layer(source).square().sum()
    weights = [source, layer.kernel.value, layer.bias.value]
    want = torch.autograd.grad(loss, weights, retain_graph=True)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        got = torch.autograd.grad(loss, weights)
    for name, g, w in zip(("x", "kernel", "bias"), got, want, strict=True):
        assert_close(name, g, w, 1e-6)


def test_autocast_of_what_is_recorded():
    layer = QRNN(5, 3, return_sequences=True)
    x = torch.rand(4, 6, 3, device=DEVICE)
    want = layer(x)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        got = torch.func.vmap(lambda row: layer(row[None])[0])(x)
    assert got.dtype == torch.float32
    assert_close("outputs", got, want, HALF["bfloat16"])


def test_autocast_leaves_float64_alone():
    layer = QRNN(5, 3, return_sequences=True, dtype="float64")
    x = torch.rand(4, 6, 3, dtype=torch.float64, device=DEVICE)
    want = layer(x)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        assert_close("outputs", layer(x), want, 1e-12)


@pytest.mark.parametrize("grad", [False, True])
def test_tensors_without_values(grad):
    """Keras infers shapes with meta tensors. PyTorch has no autocast for them."""
    shapes = [(2, 6, 3), (2, 3, 8), (8,), (2, 4)]
    tensors = [torch.empty(s, device="meta", requires_grad=grad) for s in shapes]
    with torch.set_grad_enabled(grad):
        outputs, cell = conv_pool(*tensors, None, "f")
    assert (outputs.shape, cell.shape) == ((2, 5, 4), (2, 4))
    assert causal_conv(*tensors[:3]).shape == (2, 5, 8)
    if grad:
        gradients = torch.autograd.grad(outputs.sum() + cell.sum(), tensors)
        assert [tuple(g.shape) for g in gradients] == shapes
