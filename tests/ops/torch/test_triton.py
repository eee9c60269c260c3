"""PyTorch on a GPU: the tests of the ops and the layer again, on the Triton kernels.

Without a GPU Triton's interpreter runs them.
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

if keras.config.backend() != "torch":
    pytest.skip("Triton is for PyTorch", allow_module_level=True)
if sys.platform != "linux":
    pytest.importorskip("triton", reason="Triton is for Linux alone")

import torch

from keras_qrnn import QRNN
from keras_qrnn.ops.torch import dispatch, loops
from tests import reference
from tests.assertions import assert_close
from tests.layers import test_qrnn as test_layer
from tests.ops import test_pooling, test_scan
from tests.ops.torch import kernels

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module", autouse=True)
def _as_on_a_gpu():
    with pytest.MonkeyPatch.context() as patch:
        assert dispatch._triton() is not None, "pip install triton"
        patch.setattr(dispatch, "loops", dispatch._triton())
        if kernels.DEVICE == "cpu":
            # The interpreter takes seconds for a large batch. A smaller one is cut in
            # the same pieces if they have fewer steps.
            batch = 2 * test_layer.DISTINCT
            steps = loops.PIECE_STEPS * batch // test_layer.BATCH
            patch.setattr(loops, "PIECE_STEPS", steps)
            patch.setattr(test_layer, "BATCH", batch)
        yield


@pytest.fixture(autouse=True)
def _few_programs(request, monkeypatch):
    """A large batch runs in fewer programs: the interpreter is slow.

    The interpreter takes as long for a program of many lanes as for one of few.
    """
    parameters = getattr(request.node, "callspec", None)
    large = parameters and (parameters.params.get("batch") or 0) >= 600
    if large and kernels.DEVICE == "cpu":
        monkeypatch.setattr(dispatch._triton(), "LANES", 1024)


test_scan_values = test_scan.test_scan_values
test_scan_gradients = test_scan.test_scan_gradients
test_scan_accumulates = test_scan.test_scan_accumulates
test_pool_values_and_gradients = test_pooling.test_pool_values_and_gradients
test_update_comes_from_the_negated_logit = (
    test_pooling.test_update_comes_from_the_negated_logit
)
test_gradients_by_large_forget_logits = (
    test_pooling.test_gradients_by_large_forget_logits
)
test_second_gradients = test_pooling.test_second_gradients
test_second_gradients_of_the_scan = test_scan.test_second_gradients_of_the_scan
test_values = test_layer.test_values
test_gradients = test_layer.test_gradients
test_inference_in_pieces = test_layer.test_inference_in_pieces
test_dtype_policies = test_layer.test_dtype_policies
test_gradients_with_a_zoneout_mask = test_layer.test_gradients_with_a_zoneout_mask
test_other_activations = test_layer.test_other_activations


@pytest.mark.parametrize("activate", [False, True])
@pytest.mark.parametrize("scale", ["none", "number", "steps", "units"])
@pytest.mark.parametrize("pooling", ["f", "fo", "ifo"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_kernels_do_what_the_loops_do(dtype, pooling, scale, activate):
    shape = (3, 3, 13)  # more than one program
    kernels.check_pool(dispatch._triton(), dtype, pooling, scale, activate, shape)


# The last chunk has one step, or several. Each pooling has both, with each scale.
@pytest.mark.parametrize(
    ("dtype", "time"),
    [("bfloat16", 17), ("float32", 21), ("float64", 17), ("float64", 21)],
)
@pytest.mark.parametrize("scale", ["none", "number", "steps"])
@pytest.mark.parametrize("pooling", ["f", "fo", "ifo"])
def test_kernels_in_chunks_do_what_the_loops_do(
    dtype, pooling, scale, time, monkeypatch
):
    monkeypatch.setattr(dispatch._triton(), "SHORTEST", 4)
    assert dispatch._triton().chunk_length(time, 10) == 8
    kernels.check_pool(dispatch._triton(), dtype, pooling, scale, True, (2, time, 5))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("time", [33, 37])
def test_scan_in_chunks(time, reverse, monkeypatch):
    monkeypatch.setattr(dispatch._triton(), "SHORTEST", 8)
    arrays = test_scan.scan_arguments((2, time, 5))
    decay, inputs, state = (
        torch.asarray(a, device=kernels.DEVICE, dtype=torch.float64) for a in arrays
    )
    got = dispatch._triton().linear_scan(
        decay.transpose(0, 1), inputs.transpose(0, 1), state, reverse
    )
    expected = reference.linear_scan(*arrays, reverse)
    assert_close("states", got.transpose(0, 1), expected)


@hypothesis.given(st.integers(1, 10**6), st.integers(0, 10**6))
def test_chunks_fill_the_gpu(time, lanes):
    length = dispatch._triton().chunk_length(time, lanes)
    chunks = -(-time // length)
    if chunks == 1:
        assert length == time
    else:
        assert length % 8 == 0
        assert length >= dispatch._triton().SHORTEST
        assert lanes * chunks <= dispatch._triton().FULL


@pytest.mark.parametrize(("dtype", "room"), [("float32", 1e-5), ("float64", 1e-14)])
def test_tanh_of_the_kernels(dtype, room):
    kernels.check_tanh(dispatch._triton(), dtype, room)


def test_loops_where_no_kernel_can_run(monkeypatch):
    on_a_gpu = types.SimpleNamespace(is_cuda=True)
    monkeypatch.setattr(dispatch, "is_recorded", lambda tensor: False)
    monkeypatch.setattr(dispatch, "loops", loops)
    assert dispatch.kernels_for(on_a_gpu) is dispatch._triton()
    monkeypatch.setitem(sys.modules, "keras_qrnn.ops.torch.triton", None)  # no import
    dispatch._triton.cache_clear()
    with pytest.warns(UserWarning, match="each time step is launched by itself"):
        assert dispatch.kernels_for(on_a_gpu) is loops
    dispatch._triton.cache_clear()


def test_kernels_compile_for_cuda(tmp_path):
    """The kernels compile for a GPU. The interpreter also runs what would not."""
    environment = os.environ | {
        "TRITON_INTERPRET": "0",
        "TRITON_CACHE_DIR": str(tmp_path),
    }
    command = [sys.executable, "-m", "tests.ops.torch.compile_kernels"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    sizes = [int(line.split()[-1]) for line in done.stdout.splitlines()]
    assert len(sizes) == 3 * 3 + (4 + 2) * (5 + 3)
    assert min(sizes) > 1000


@pytest.mark.parametrize("time", [20, None])
def test_training(time):
    x, y = np.ones((4, 20, 3), "float32"), np.zeros((4, 20, 2), "float32")
    model = keras.Sequential(
        [keras.Input((time, 3)), QRNN(2, return_sequences=True, zoneout=0.1)]
    )
    model.compile("sgd", "mse", jit_compile=False)
    losses = model.fit(x, y, epochs=3, verbose=0).history["loss"]
    assert losses[2] < losses[0]
