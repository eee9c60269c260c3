"""PyTorch with Numba: the tests of the ops and the layer on Numba's kernels."""

import importlib.util
import os
import subprocess
import sys
import threading
from pathlib import Path
from signal import SIGABRT

import keras
import pytest
from hypothesis import given
from hypothesis import strategies as st

if keras.config.backend() != "torch":
    pytest.skip("Numba is for PyTorch", allow_module_level=True)

import torch

import keras_qrnn
from keras_qrnn.ops.torch import dispatch, loops, openmp
from tests import reference
from tests.assertions import assert_close
from tests.layers import test_qrnn as test_layer
from tests.ops import test_pooling, test_scan
from tests.ops.torch import kernels

find_numba = dispatch._numba
if find_numba() is None:
    pytest.skip("pip install '.[numba]'", allow_module_level=True)

FULL = ["float32", "float64"]


@pytest.fixture(scope="module", autouse=True)
def _with_numba():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "_numba", find_numba)
        yield


@pytest.fixture(params=["openmp", "own"])
def many_threads(request, monkeypatch):
    """Threads share small arrays too: PyTorch's own threads, or others."""
    if request.param == "own":
        monkeypatch.setattr(openmp, "_openmp", lambda: None)
        monkeypatch.setattr(os, "cpu_count", lambda: 3)
        openmp._own_threads.cache_clear()
    elif openmp._openmp() is None:
        pytest.skip("no OpenMP here that can be called by GOMP_parallel")
    monkeypatch.setattr(find_numba(), "PER_THREAD", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield request.param
    torch.set_num_threads(before)


test_scan_values = test_scan.test_scan_values
test_scan_gradients = test_scan.test_scan_gradients
test_scan_accumulates = test_scan.test_scan_accumulates
test_update_comes_from_the_negated_logit = (
    test_pooling.test_update_comes_from_the_negated_logit
)
test_gradients_by_large_forget_logits = (
    test_pooling.test_gradients_by_large_forget_logits
)
test_pool_values_and_gradients = test_pooling.test_pool_values_and_gradients
test_second_gradients = test_pooling.test_second_gradients
test_second_gradients_of_the_scan = test_scan.test_second_gradients_of_the_scan
test_values = test_layer.test_values
test_gradients = test_layer.test_gradients
test_inference_in_pieces = test_layer.test_inference_in_pieces
test_dtype_policies = test_layer.test_dtype_policies
test_gradients_with_a_zoneout_mask = test_layer.test_gradients_with_a_zoneout_mask
test_other_activations = test_layer.test_other_activations


@pytest.mark.parametrize("activate", [False, True])
@pytest.mark.parametrize("scale", kernels.SCALES)
@pytest.mark.parametrize("pooling", ["f", "fo", "ifo"])
@pytest.mark.parametrize("dtype", FULL)
def test_kernels_do_what_the_loops_do(dtype, pooling, scale, activate):
    arguments = dtype, pooling, scale, activate, (3, 5, 31), "cpu"
    kernels.check_pool(find_numba(), *arguments)


@pytest.mark.parametrize("shape", [(1, 7, 70), (3, 5, 31), (5, 4, 33), (13, 3, 2)])
def test_threads_share_all_lanes(many_threads, shape):
    """Threads get sequences, or units. Their shares may differ in size."""
    arguments = "float32", "ifo", "units", True, shape, "cpu"
    kernels.check_pool(find_numba(), *arguments)


@pytest.mark.skipif(sys.platform != "linux", reason="no list of threads")
def test_lanes_run_at_the_same_time(many_threads):
    """Where PyTorch's threads run, no other thread competes with them."""
    torch.ones(2**20).add_(1)
    present = {path.name for path in Path("/proc/self/task").iterdir()}
    met, lanes = threading.Barrier(3), []

    def kernel(_, state, *lane):
        met.wait(timeout=60)
        lanes.append((lane, str(threading.get_native_id())))

    find_numba()._launch(kernel, torch.ones(3, 5, 7), torch.ones(3, 7))
    parts, threads = zip(*sorted(lanes), strict=True)
    assert parts == tuple((3, 7, n, n + 1, 0, 7) for n in range(3))
    assert len(set(threads)) == 3
    assert present.issuperset(threads) == (many_threads == "openmp")


def test_an_error_in_a_thread_is_raised(many_threads):
    met, caller = threading.Barrier(3), threading.get_ident()

    def kernel(_, state, *lane):
        met.wait(timeout=60)
        if threading.get_ident() != caller:
            raise MemoryError("of another thread")

    with pytest.raises(MemoryError, match="of another thread"):
        find_numba()._launch(kernel, torch.ones(3, 5, 7), torch.ones(3, 7))


@pytest.mark.parametrize("outcome", ["interrupted", "not entered"])
def test_an_interrupt_is_not_lost(outcome, monkeypatch):
    """C reports no exception of a Python function that it calls."""
    if outcome == "not entered":
        monkeypatch.setattr(openmp, "_in_threads", lambda run, count: None)

    def kernel(*arguments):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find_numba()._launch(kernel, torch.ones(3, 5, 7), torch.ones(3, 7))


@pytest.mark.skipif(sys.platform != "linux", reason="other names, other libraries")
def test_openmp_is_found():
    assert openmp._openmp() is not None


@given(
    shape=st.tuples(st.integers(1, 14), st.integers(1, 9), st.integers(1, 70)),
    reverse=st.booleans(),
    time_major=st.booleans(),
)
def test_scan_in_either_order_of_memory(shape, reverse, time_major):
    scan, arrays = find_numba().linear_scan, test_scan.scan_arguments(shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(find_numba(), "PER_THREAD", 1)
        decay, inputs, state = map(torch.from_numpy, arrays)
        decay, inputs = decay.transpose(0, 1), inputs.transpose(0, 1)
        if time_major:
            decay, inputs = decay.contiguous(), inputs.contiguous()
        states = scan(decay, inputs, state, reverse)
    assert states.stride() == inputs.stride() or 1 in shape
    want = reference.linear_scan(*arrays, reverse)
    assert_close("states", states.transpose(0, 1), want)


@pytest.mark.parametrize(("dtype", "room"), [("float32", 1e-6), ("float64", 1e-14)])
def test_activations_of_the_kernels(dtype, room):
    kernels.check_tanh(find_numba(), dtype, room, "cpu")
    x = torch.linspace(-120, 120, 10001, dtype=getattr(torch, dtype))[None]
    gates = torch.cat([torch.full_like(x, 50), x], dim=-1)[None]  # z is one
    got, _ = find_numba().pool(gates, torch.zeros_like(x), None, "f", True)
    torch.testing.assert_close(got[0], 1 - x.sigmoid(), rtol=0, atol=room)


@pytest.mark.parametrize("dtype", FULL)
def test_what_is_no_number_stays_none(dtype):
    """NaN and infinity pass through: a diverging training can be seen."""
    x = torch.tensor([[torch.nan, torch.inf, -torch.inf]], dtype=getattr(torch, dtype))
    half = torch.full_like(x, 0)
    state = torch.zeros_like(x)
    for gates in ([x, half], [half, x]):
        gates = torch.cat(gates, dim=-1)[None]
        got, _ = find_numba().pool(gates, state, None, "f", True)
        want, _ = loops.pool(gates, state, None, "f", True)
        torch.testing.assert_close(got, want, equal_nan=True)


def test_where_they_run():
    tensor = torch.zeros(1)
    for of_this_kind in (tensor, tensor.double(), torch.nn.Parameter(tensor)):
        assert dispatch.kernels_for(of_this_kind) is find_numba()
    for of_another_kind in (tensor.bfloat16(), tensor.half(), tensor.to("meta")):
        assert dispatch.kernels_for(of_another_kind) is loops


def test_loops_without_numba(monkeypatch):
    looked_for = []

    def find_spec(name):
        looked_for.append(name)

    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", find_spec)
        assert find_numba.__wrapped__() is None
    assert looked_for == ["numba"]

    def no_llvm(name):
        raise OSError("libllvmlite.so")

    message = "Numba is installed but cannot be imported"
    with monkeypatch.context() as patch:
        patch.setattr(importlib, "import_module", no_llvm)
        with pytest.warns(UserWarning, match=message):
            assert find_numba.__wrapped__() is None
    monkeypatch.setitem(
        sys.modules, "keras_qrnn.ops.torch.numba", None
    )  # cannot import
    with pytest.warns(UserWarning, match=message):
        assert find_numba.__wrapped__() is None


def test_a_tensor_that_is_negated_when_read():
    x = torch.rand(2, 3, 4)
    negated = torch._neg_view(-x)
    state = torch.zeros(3, 4)
    got = find_numba().linear_scan(negated, negated, state, False)
    assert torch.equal(got, find_numba().linear_scan(x, x, state, False))


def test_an_exported_model_has_no_kernels():
    layer = keras_qrnn.QRNN(4, return_sequences=True)
    x = torch.ones((2, 5, 3))
    want = layer(x)
    with torch.no_grad():
        exported = torch.export.export(layer, (x,)).module()
        torch.testing.assert_close(exported(x), want)


# Of a scan, which Numba compiles in less time than a pooling.
FORK = """
import os, torch
from keras_qrnn import linear_scan
from keras_qrnn.ops.torch import numba
numba.PER_THREAD = 1
torch.set_num_threads(2)
torch.ones(2**22).add_(1)  # OpenMP's threads
half = torch.full((2, 3, 32), 0.5)
states = torch.tensor([[[0.5], [0.75], [0.875]]]).expand(2, 3, 32)
def in_a_fork():
    child = os.fork()
    if not child:
        os._exit(0 if torch.equal(linear_scan(half, half), states) else 1)
    if os.waitpid(child, 0)[1]:
        raise SystemExit("in a fork")
in_a_fork()
assert torch.equal(linear_scan(half, half), states)
in_a_fork()
"""

END = """
import builtins, threading, torch
from keras_qrnn import linear_scan
from keras_qrnn.ops.torch import numba
numba.PER_THREAD = 1
torch.set_num_threads(2)
half = torch.full((2, 3, 32), 0.5)
states = linear_scan(half, half)
def later():
    threading.main_thread().join()
    print(torch.equal(linear_scan(half, half), states), flush=True)
threading.Thread(target=later).start()
class Last:
    def __del__(self, scan=linear_scan, half=half):
        scan(half, half)
builtins._ = Last()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_has_threads_of_its_own():
    """Whether the kernels have run before the fork or not."""
    command = [sys.executable, "-c", FORK]
    done = subprocess.run(command, timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_kernels_that_run_while_python_ends():
    """In a thread that outlives the main one, and last of all in a finalizer."""
    command = [sys.executable, "-c", END]
    done = subprocess.run(command, timeout=120, capture_output=True, text=True)
    # In the finalizer PyTorch's own autograd may abort: it is taken down by then.
    assert done.stdout == "True\n" and done.returncode in (0, -SIGABRT), done.stderr
