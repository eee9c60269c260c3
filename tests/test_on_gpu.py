"""What a backend runs on a GPU: the tests of the ops and the layer again, on the CPU.

On PyTorch the Triton kernels, by Triton's interpreter; on JAX and TensorFlow scans of
logarithmically many steps.
"""

import os
import subprocess
import sys
import types
from pathlib import Path

import hypothesis
import keras
import numpy as np
import pytest
from hypothesis import strategies as st

from keras_qrnn import QRNN
from keras_qrnn.ops.backend import backend as active
from tests import reference, test_ops
from tests.layers import test_qrnn as test_layer

BACKEND = keras.config.backend()
ROOT = Path(__file__).parents[1]

if BACKEND == "numpy":
    pytest.skip("the NumPy backend has no GPU", allow_module_level=True)
if BACKEND == "torch":
    import torch

    from tests import kernels

    choice_of_kernels = active._kernels
    if sys.platform != "linux":
        pytest.importorskip("triton", reason="Triton is for Linux alone")

only_torch = pytest.mark.skipif(BACKEND != "torch", reason="PyTorch's kernels")


@pytest.fixture(scope="module", autouse=True)
def _as_on_a_gpu():
    with pytest.MonkeyPatch.context() as patch:
        if BACKEND == "torch":
            assert active._triton() is not None, "pip install triton"
            patch.setattr(active, "_kernels", lambda tensor: active._triton())
        elif BACKEND == "tensorflow":
            patch.setattr(active, "_has_gpu", lambda: True)
        else:
            import jax

            def default(*arguments, default, **by_platform):
                return default(*arguments)

            patch.setattr(jax.lax, "platform_dependent", default)
            jax.clear_caches()
        yield
    if BACKEND == "jax":
        jax.clear_caches()


test_scan_values = test_ops.test_scan_values
test_scan_gradients = test_ops.test_scan_gradients
test_scan_accumulates = test_ops.test_scan_accumulates
test_pool_values_and_gradients = test_ops.test_pool_values_and_gradients
test_second_gradients = test_ops.test_second_gradients
test_second_gradients_of_the_scan = test_ops.test_second_gradients_of_the_scan
test_values = test_layer.test_values
test_gradients = test_layer.test_gradients
test_inference_in_pieces = test_layer.test_inference_in_pieces
test_dtype_policies = test_layer.test_dtype_policies
test_gradients_with_a_zoneout_mask = test_layer.test_gradients_with_a_zoneout_mask
test_other_activations = test_layer.test_other_activations


@only_torch
@pytest.mark.parametrize("activate", [False, True])
@pytest.mark.parametrize("keep", ["none", "number", "steps", "units"])
@pytest.mark.parametrize("pooling", ["f", "fo", "ifo"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_kernels_do_what_the_loops_do(dtype, pooling, keep, activate):
    shape = (3, 5, 31)  # more than one program
    kernels.check_pool(active._triton(), dtype, pooling, keep, activate, shape)


@only_torch
@pytest.mark.parametrize("time", [33, 37])  # the last chunk has one step, or several
@pytest.mark.parametrize("keep", ["none", "number", "steps"])
@pytest.mark.parametrize("pooling", ["f", "fo", "ifo"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_kernels_in_chunks_do_what_the_loops_do(
    dtype, pooling, keep, time, monkeypatch
):
    monkeypatch.setattr(active._triton(), "SHORTEST", 8)
    assert active._triton().chunk_length(time, 10) == 16
    kernels.check_pool(active._triton(), dtype, pooling, keep, True, (2, time, 5))


@only_torch
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("time", [33, 37])
def test_scan_in_chunks(time, reverse, monkeypatch):
    monkeypatch.setattr(active._triton(), "SHORTEST", 8)
    arrays = test_ops.scan_arguments((2, time, 5))
    decay, inputs, state = (
        torch.asarray(a, device=kernels.DEVICE, dtype=torch.float64) for a in arrays
    )
    got = active._triton().linear_scan(
        decay.transpose(0, 1), inputs.transpose(0, 1), state, reverse
    )
    expected = reference.linear_scan(*arrays, reverse)
    test_ops.assert_close(got.transpose(0, 1), expected)


@only_torch
@hypothesis.given(st.integers(1, 10**6), st.integers(0, 10**6))
def test_chunks_fill_the_gpu(time, lanes):
    length = active._triton().chunk_length(time, lanes)
    chunks = -(-time // length)
    if chunks == 1:
        assert length == time
    else:
        assert length % 8 == 0
        assert length >= active._triton().SHORTEST
        assert lanes * chunks <= active._triton().FULL


@only_torch
@pytest.mark.parametrize(("dtype", "room"), [("float32", 1e-5), ("float64", 1e-14)])
def test_tanh_of_the_kernels(dtype, room):
    kernels.check_tanh(active._triton(), dtype, room)


@only_torch
def test_loops_where_no_kernel_can_run(monkeypatch):
    tensor = types.SimpleNamespace(is_cuda=True)
    assert choice_of_kernels(tensor) is active._triton()
    for module, name in ((torch.compiler, "is_compiling"), (torch.jit, "is_tracing")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, lambda: True)
            assert choice_of_kernels(tensor) is None
    monkeypatch.setitem(sys.modules, "keras_qrnn.ops.triton", None)  # cannot import
    active._triton.cache_clear()
    with pytest.warns(UserWarning, match="each time step is launched by itself"):
        assert choice_of_kernels(tensor) is None
    active._triton.cache_clear()


@only_torch
def test_kernels_compile_for_cuda(tmp_path):
    """The interpreter runs what a GPU's compiler may refuse."""
    environment = os.environ | {
        "TRITON_INTERPRET": "0",
        "TRITON_CACHE_DIR": str(tmp_path),
    }
    command = [sys.executable, "-m", "tests.compile_kernels"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    sizes = [int(line.split()[-1]) for line in done.stdout.splitlines()]
    assert len(sizes) == 2 * 2 * 3 + (4 * 3 + 2 * 2) * (5 + 3)
    assert min(sizes) > 1000


@pytest.mark.skipif(BACKEND != "tensorflow", reason="a graph of TensorFlow")
@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("shape", [(None, 37, 3), (None, 37, None), (None, None, 3)])
def test_graph_of_unknown_sizes(shape, jit_compile):
    import tensorflow as tf

    arrays = test_ops.scan_arguments((2, 37, 3))
    scan = tf.function(
        lambda *tensors: active.linear_scan(*tensors, False),
        input_signature=[
            tf.TensorSpec(shape),
            tf.TensorSpec(shape),
            tf.TensorSpec((None, shape[2])),
        ],
        jit_compile=jit_compile,
    )
    test_ops.assert_close(
        scan(*map(np.float32, arrays)), reference.linear_scan(*arrays)
    )


@pytest.mark.parametrize("time", [20, None])
def test_compiled_training(time):
    x, y = np.ones((4, 20, 3), "float32"), np.zeros((4, 20, 2), "float32")
    model = keras.Sequential(
        [keras.Input((time, 3)), QRNN(2, return_sequences=True, zoneout=0.1)]
    )
    model.compile("sgd", "mse", jit_compile=BACKEND != "torch")
    losses = model.fit(x, y, epochs=3, verbose=0).history["loss"]
    assert losses[2] < losses[0]
