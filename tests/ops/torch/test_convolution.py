"""PyTorch's convolution: its paths, which depend on the processor."""

import keras
import numpy as np
import pytest
from keras import ops

if keras.config.backend() != "torch":
    pytest.skip("choices of PyTorch", allow_module_level=True)

import torch

from keras_qrnn.ops.torch import convolution, loops
from tests.assertions import assert_close
from tests.gradients import value_and_gradients


@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("rows", [4, 2048])
@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize("name", ["Convolution", "Products"])
def test_convolution_equals_pytorchs(name, window, rows, use_bias, monkeypatch):
    monkeypatch.setattr(loops, "PIECE_ROWS", rows)
    rng = np.random.default_rng(window)
    shapes = [(7, 2, 3), (window, 3, 8), (8,)][: 3 if use_bias else 2]
    arrays = [rng.normal(size=shape).astype("float32") for shape in shapes]

    def plain(x, kernel, bias):
        images, weight = x.permute(1, 2, 0), kernel.permute(2, 1, 0)
        return torch.nn.functional.conv1d(images, weight, bias).permute(2, 0, 1)

    def loss(function, *tensors):
        tensors = tensors if use_bias else (*tensors, None)
        return ops.sum(ops.sin(function(*tensors)))

    own = getattr(convolution, name).apply
    got = value_and_gradients(lambda *a: loss(own, *a), arrays)
    want = value_and_gradients(lambda *a: loss(plain, *a), arrays)
    assert_close("value", got[0], want[0])
    for n, (g, w) in enumerate(zip(got[1], want[1], strict=True)):
        assert_close(("d_inputs", "d_kernel", "d_bias")[n], g, w)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("at_home", [False, True])
def test_convolution_by_processor(at_home, dtype, monkeypatch):
    monkeypatch.setattr(convolution, "ONEDNN", True)
    monkeypatch.setattr(convolution, "MKL_AT_HOME", at_home)
    inputs = torch.zeros((1, 1, 1), dtype=getattr(torch, dtype))
    convolves = dtype == "float32" and not at_home
    assert convolution.takes_convolution(inputs) == convolves


@pytest.mark.parametrize("name", ["Convolution", "Products"])
def test_second_derivative_of_the_convolution(name):
    rng = np.random.default_rng(0)
    tensors = [
        torch.tensor(rng.normal(size=shape), requires_grad=True)
        for shape in [(5, 2, 3), (2, 3, 4), (4,)]
    ]
    own = getattr(convolution, name).apply
    assert torch.autograd.gradcheck(own, tensors)
    assert torch.autograd.gradgradcheck(own, tensors)
