"""A batch without rows and a layer without units, on each set of kernels."""

import importlib

import keras
import pytest

if keras.config.backend() != "torch":
    pytest.skip("kernels of PyTorch", allow_module_level=True)

import torch

import keras_qrnn
from keras_qrnn import QRNN
from keras_qrnn.ops.equations import GATES
from keras_qrnn.ops.torch import dispatch, pool

POOLS = {"f": keras_qrnn.f_pool, "fo": keras_qrnn.fo_pool, "ifo": keras_qrnn.ifo_pool}


@pytest.fixture(autouse=True, params=["loops", "numba", "triton"])
def _kernels(request, monkeypatch):
    if request.param != "loops":
        pytest.importorskip(request.param)
    module = importlib.import_module(f"keras_qrnn.ops.torch.{request.param}")
    monkeypatch.setattr(dispatch, "loops", module)


@pytest.mark.parametrize("time", [1, 6, 70])
@pytest.mark.parametrize("pooling", ["f", "fo", "ifo"])
def test_layer_on_no_rows(pooling, time):
    layer = QRNN(5, 2, pooling, return_sequences=True, return_state=True, zoneout=0.1)
    layer(torch.rand(4, time, 3))
    x = torch.rand(0, time, 3, requires_grad=True)
    outputs, cell, *_ = layer(x, training=True)
    assert (outputs.shape, cell.shape) == ((0, time, 5), (0, 5))
    (outputs.sum() + cell.sum()).backward()
    assert x.grad.shape == x.shape
    assert not layer.kernel.value.grad.any()
    mask = torch.ones(0, time, dtype=torch.bool)
    with torch.no_grad():
        assert layer(x, mask=mask)[0].shape == (0, time, 5)


@pytest.mark.parametrize("shape", [(0, 6, 3), (2, 6, 0), (0, 70, 0), (2, 70, 0)])
@pytest.mark.parametrize("pooling", POOLS)
def test_pools_of_nothing(pooling, shape):
    gates = [torch.rand(shape, requires_grad=True) for _ in GATES[pooling]]
    outputs, last = POOLS[pooling](*gates)
    assert (outputs.shape, last.shape) == (shape, (shape[0], shape[2]))
    for gradient in torch.autograd.grad(outputs.sum() + last.sum(), gates):
        assert gradient.shape == shape
    with torch.no_grad():
        assert POOLS[pooling](*gates)[0].shape == shape
    states = keras_qrnn.linear_scan(gates[0], gates[1], reverse=True)
    assert states.shape == shape
    (gradient,) = torch.autograd.grad(states.sum(), gates[0])
    assert gradient.shape == shape


def test_no_rows_where_gates_stay_as_they_are():
    outputs, last = pool(torch.rand(0, 6, 8), torch.rand(0, 4), None, "f", False)
    assert (outputs.shape, last.shape) == ((0, 6, 4), (0, 4))
