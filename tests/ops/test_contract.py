"""Every implementation has the functions of its contract, argument by argument."""

import importlib
import inspect

import keras
import pytest

from keras_qrnn.ops import backend as contract

BACKEND = keras.config.backend()


def functions(protocol):
    return {
        name: function
        for name, function in vars(protocol).items()
        if inspect.isfunction(function) and not name.startswith("_")
    }


def arguments(function):
    """The names of the arguments, in order, each with its kind."""
    parameters = inspect.signature(inspect.unwrap(function)).parameters.values()
    return [(p.name, p.kind) for p in parameters if p.name != "self"]


def check(module, name, function):
    implementation = getattr(module, name)
    assert arguments(implementation) == arguments(function), name


def test_the_contract_has_functions():
    assert set(functions(contract.Backend)) == {
        "linear_scan", "pool", "causal_conv", "conv_pool", "cross_entropy"
    }  # fmt: skip
    assert "pool_gradients" in functions(contract.Kernels)


@pytest.mark.parametrize(("name", "function"), functions(contract.Backend).items())
def test_backend(name, function):
    check(contract.backend, name, function)


@pytest.mark.skipif(BACKEND == "numpy", reason="the active backend itself")
@pytest.mark.parametrize(("name", "function"), functions(contract.Backend).items())
def test_numpy_backend(name, function):
    check(importlib.import_module("keras_qrnn.ops.numpy"), name, function)


@pytest.mark.skipif(BACKEND != "torch", reason="kernels of PyTorch")
@pytest.mark.parametrize("kernels", ["loops", "custom_ops", "numba", "triton"])
@pytest.mark.parametrize(("name", "function"), functions(contract.Kernels).items())
def test_kernels(kernels, name, function):
    if kernels in ("numba", "triton"):
        pytest.importorskip(kernels)
    module = importlib.import_module(f"keras_qrnn.ops.torch.{kernels}")
    check(module, name, function)


def test_an_unknown_backend_is_refused(monkeypatch):
    monkeypatch.setattr(keras.config, "backend", lambda: "openvino")
    with pytest.raises(ImportError, match="runs on the Keras backends"):
        contract._active_backend()
