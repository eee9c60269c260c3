"""PyTorch's convolution: its paths, which depend on the processor."""

import keras
import numpy as np
import pytest
from keras import ops

if keras.config.backend() != "torch":
    pytest.skip("choices of PyTorch", allow_module_level=True)

import torch

from keras_qrnn.ops.torch import convolution
from tests.assertions import assert_close
from tests.gradients import second_gradients, value_and_gradients


@pytest.fixture(params=["oneDNN", "MKL"])
def _products(request, monkeypatch):
    """Which library computes the products, and a sum of several parts."""
    if request.param == "oneDNN" and not (convolution.MKL and convolution.ONEDNN):
        pytest.skip("this PyTorch has not both")
    monkeypatch.setattr(convolution, "IS_INTEL", request.param == "MKL")
    monkeypatch.setattr(convolution, "SMALL", 1)
    monkeypatch.setattr(convolution, "ROWS", 4)


def plain(x, kernel, bias):
    """PyTorch's own convolution of `(time, batch, features)`."""
    images, weight = x.permute(1, 2, 0), kernel.permute(2, 1, 0)
    outputs = torch.nn.functional.conv1d(images, weight).permute(2, 0, 1)
    return outputs if bias is None else outputs + bias


def arrays_of(window, bias):
    rng = np.random.default_rng(window)
    shapes = [(7, 2, 3), (window, 3, 8)]
    shapes += {"none": [], "shared": [(8,)], "of each sequence": [(2, 8)]}[bias]
    return [rng.normal(size=shape).astype("float32") for shape in shapes]


@pytest.mark.usefixtures("_products")
@pytest.mark.parametrize("bias", ["none", "shared", "of each sequence"])
@pytest.mark.parametrize("window", [1, 2, 3])
def test_convolution_equals_pytorchs(window, bias):
    arrays = arrays_of(window, bias)

    def loss(function, *tensors):
        tensors = tensors if bias != "none" else (*tensors, None)
        return ops.sum(ops.sin(function(*tensors)))

    own = convolution.Products.apply
    got = value_and_gradients(lambda *a: loss(own, *a), arrays)
    want = value_and_gradients(lambda *a: loss(plain, *a), arrays)
    assert_close("value", got[0], want[0])
    for n, (g, w) in enumerate(zip(got[1], want[1], strict=True)):
        assert_close(("d_inputs", "d_kernel", "d_bias")[n], g, w)
    got = second_gradients(lambda *a: loss(own, *a), arrays)
    want = second_gradients(lambda *a: loss(plain, *a), arrays)
    for n, (g, w) in enumerate(zip(got, want, strict=True)):
        assert_close(("second d_inputs", "d_kernel", "d_bias")[n], g, w)
    with torch.no_grad():
        inputs, *rest = map(torch.tensor, arrays)
        rest = rest if bias != "none" else [*rest, None]
        outputs = convolution.convolve(inputs.transpose(0, 1), *rest)
        assert_close("outputs", outputs.transpose(0, 1), plain(inputs, *rest))


@pytest.mark.parametrize("bias", ["none", "shared", "of each sequence"])
def test_a_batch_of_gradients(bias):
    """As `is_grads_batched=True` gives it: as many gradients as a Jacobian needs."""
    tensors = [torch.tensor(a, requires_grad=True) for a in arrays_of(2, bias)]
    arguments = tensors if bias != "none" else [*tensors, None]
    batch = torch.rand(5, 6, 2, 8)
    found = [
        torch.autograd.grad(function(*arguments), tensors, batch, is_grads_batched=True)
        for function in (convolution.Products.apply, plain)
    ]
    for n, (got, want) in enumerate(zip(*found, strict=True)):
        assert_close(("d_inputs", "d_kernel", "d_bias")[n], got, want)


@pytest.mark.usefixtures("_products")
def test_tensors_that_are_views():
    """A kernel that is a part of another, and a gradient that is one value."""
    x, whole = torch.rand(2, 5, 3), torch.rand(2, 3, 8)
    found = []
    for kernel in (whole[..., 2:6], whole[..., 2:6].contiguous()):
        arguments = [x.requires_grad_(), kernel.requires_grad_(), None]
        outputs = convolution.convolve(*arguments)
        found.append([outputs, *torch.autograd.grad(outputs.sum(), arguments[:2])])
        with torch.no_grad():
            assert_close(
                "without a gradient", convolution.convolve(*arguments), outputs
            )
    for got, want in zip(*found, strict=True):
        assert_close("a value or a gradient", got, want)
    # Both taps see each of the three steps between the first and the last.
    total = 2 * 3 * whole[..., 2:6].sum()
    assert_close("the gradient by x", found[0][1][:, 1:-1].sum(), total)


@pytest.mark.usefixtures("_products")
def test_the_convolution_leaves_the_bias_as_it_was():
    """With one step the bias of each sequence has the shape of the result."""
    x, kernel, bias = torch.rand(1, 2, 3), torch.rand(1, 3, 8), torch.rand(2, 8)
    before = bias.clone()
    outputs = convolution.Products.apply(x, kernel, bias)
    assert_close("bias", bias, before, 0)
    assert_close("outputs", outputs[0], x[0] @ kernel[0] + bias)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("is_intel", [False, True])
def test_products_by_processor(is_intel, dtype, monkeypatch):
    for name in ("ONEDNN", "MKL"):
        monkeypatch.setattr(convolution, name, True)
    monkeypatch.setattr(convolution, "IS_INTEL", is_intel)
    large, small = (torch.zeros(n, n, dtype=getattr(torch, dtype)) for n in (128, 127))
    expected = dtype == "float32" and not is_intel
    assert not convolution.takes_onednn(large, large)  # a gradient is recorded
    with torch.no_grad():
        assert convolution.takes_onednn(large, large) == expected
        assert not convolution.takes_onednn(small, small)
        with torch.backends.mkldnn.flags(enabled=False):
            assert not convolution.takes_onednn(large, large)
        monkeypatch.setattr(convolution, "ONEDNN", None)
        assert not convolution.takes_onednn(large, large)


@pytest.mark.parametrize("bias", [(4,), (2, 4)])
def test_second_derivative_of_the_convolution(bias):
    rng = np.random.default_rng(0)
    tensors = [
        torch.tensor(rng.normal(size=shape), requires_grad=True)
        for shape in [(5, 2, 3), (2, 3, 4), bias]
    ]
    own = convolution.Products.apply
    assert torch.autograd.gradcheck(own, tensors)
    assert torch.autograd.gradgradcheck(own, tensors)
