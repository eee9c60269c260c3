"""PyTorch while something traces, records or transforms: only plain operations run.

Each test runs with each set of kernels that the machine has. It fails if a kernel runs
where only operations that PyTorch's dispatcher sees may run.
"""

import importlib
from functools import partial

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

if keras.config.backend() != "torch":
    pytest.skip("choices of PyTorch", allow_module_level=True)

import torch
from torch.autograd import forward_ad
from torch.func import grad, jacrev, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from keras_qrnn.ops import torch as backend
from keras_qrnn.ops.equations import GATES
from keras_qrnn.ops.torch import cross_entropy, dispatch, loops, recorded
from tests import reference
from tests.assertions import assert_close

WINDOW, FEATURES, UNITS = 3, 3, 4
NAMES = ("inputs", "kernel", "bias", "cell")
poolings = pytest.mark.parametrize("pooling", ["f", "fo", "ifo"])


@pytest.fixture(autouse=True, params=["loops", "numba", "triton"])
def kernels(request, monkeypatch):
    """The set of kernels that runs where nothing records."""
    if request.param != "loops":
        pytest.importorskip(request.param)
    module = importlib.import_module(f"keras_qrnn.ops.torch.{request.param}")
    monkeypatch.setattr(dispatch, "loops", module)
    return module


class Case:
    """`conv_pool` on random arguments, with the reference's results and gradients.

    Under fo-pooling each sequence has a bias of its own.
    """

    def __init__(self, pooling, batch=2, time=5, scale=None, dtype="float64"):
        rng = np.random.default_rng(time)
        channels = len(GATES[pooling]) * UNITS

        def draw(*shape):
            return rng.normal(size=shape)

        x, window = draw(batch, time, FEATURES), draw(batch, WINDOW - 1, FEATURES)
        kernel = draw(WINDOW, FEATURES, channels)
        bias = draw(batch, channels) if pooling == "fo" else draw(channels)
        cell = draw(batch, UNITS)
        if scale == "steps":
            scale = rng.random((batch, time, 1)) < 0.6
        self.pooling = pooling
        self.scale = torch.tensor(scale) if isinstance(scale, np.ndarray) else scale
        self.above = draw(batch, time, UNITS), draw(batch, UNITS)
        self.want = reference.qrnn(
            x, kernel, bias, pooling, cell, window, update_scale=scale,
            d_outputs=self.above[0], d_cell=self.above[1],
        )  # fmt: skip
        arrays = np.concatenate([window, x], axis=1), kernel, bias, cell
        self.arguments = [torch.tensor(a, dtype=getattr(torch, dtype)) for a in arrays]
        found = self.want.gradients
        inputs = np.concatenate([found["window"], found["x"]], axis=1)
        self.gradients = inputs, found["kernel"], found["bias"], found["cell"]

    def run(self, *arguments):
        return backend.conv_pool(*arguments, self.scale, self.pooling)

    def loss(self, *arguments):
        above = (torch.as_tensor(a, dtype=arguments[0].dtype) for a in self.above)
        results = zip(self.run(*arguments), above, strict=True)
        return sum((result * weight).sum() for result, weight in results)

    def check(self, outputs, last):
        assert_close("outputs", outputs, self.want.outputs, 1e-10)
        assert_close("last cell", last, self.want.cell, 1e-10)

    def check_gradients(self, gradients, tolerance=1e-10):
        for name, got, want in zip(NAMES, gradients, self.gradients, strict=True):
            assert_close(name, got, want, tolerance)


class Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


@poolings
def test_a_dispatch_mode_sees_operations_out_of_place(pooling):
    case = Case(pooling, scale="steps")
    for enabled in (True, False):
        with Recorder() as recorder, torch.set_grad_enabled(enabled):
            results = case.run(*case.arguments)
        case.check(*results)
        assert len(recorder.seen) > 10
        assert not [f for f in recorder.seen if f._schema.is_mutable]
        assert not [f for f in recorder.seen if f.namespace != "aten"]


@pytest.mark.parametrize(("time", "enabled"), [(1, True), (5, False), (40, True)])
def test_make_fx(enabled, time):
    """A graph takes the values of another call, and refuses another length."""
    case, longer = Case("ifo", time=time), Case("ifo", time=time + 9)
    with torch.set_grad_enabled(enabled):
        graph = make_fx(case.run)(*[torch.rand_like(a) for a in case.arguments])
        case.check(*graph(*case.arguments))
        with pytest.raises(RuntimeError):
            graph(*longer.arguments)


def test_make_fx_of_any_batch_and_time():
    traced = [torch.rand_like(a) for a in Case("ifo", time=3).arguments]
    graph = make_fx(Case("ifo").run, tracing_mode="symbolic")(*traced)
    for case in (Case("ifo", 2, 1), Case("ifo", 4, 9), Case("ifo", 3, 40)):
        case.check(*graph(*case.arguments))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("time", [1, 5])
def test_a_trace_takes_any_batch_and_time(time):
    case = Case("fo", time=time)
    with torch.no_grad():
        traced = torch.jit.trace(case.run, case.arguments, check_trace=False)
        for other in (case, Case("fo", 4, 9), Case("fo", 1, 1), Case("fo", 3, 40)):
            other.check(*traced(*other.arguments))


def test_fake_tensors():
    from torch._subclasses import FakeTensorMode

    case = Case("fo")
    with FakeTensorMode() as mode:
        arguments = [mode.from_tensor(a) for a in case.arguments]
        outputs, last = case.run(*arguments)
    assert (outputs.shape, last.shape) == ((2, 5, UNITS), (2, UNITS))
    assert type(outputs) is type(arguments[0])
    assert dispatch.kernels_for(outputs) is None  # also without its mode


@poolings
def test_selective_checkpointing(pooling):
    case = Case(pooling, scale=0.7)
    arguments = [a.requires_grad_() for a in case.arguments]

    def save_all(context, operation, *args, **kwargs):
        return CheckpointPolicy.MUST_SAVE

    loss = checkpoint(
        case.loss,
        *arguments,
        use_reentrant=False,
        context_fn=partial(create_selective_checkpoint_contexts, save_all),
    )
    case.check_gradients(torch.autograd.grad(loss, arguments))


@poolings
@pytest.mark.parametrize("scale", [None, 0.7, "steps"])
def test_gradients_of_torch_func(scale, pooling):
    case = Case(pooling, scale=scale)
    case.check_gradients(grad(case.loss, (0, 1, 2, 3))(*case.arguments))


def test_vmap_and_gradients_of_each_sample():
    case = Case("ifo")
    inputs, kernel, bias, cell = case.arguments

    def one(inputs, cell, *weights):
        results = case.run(inputs[None], *weights, cell[None])
        return tuple(result[0] for result in results)

    def loss(*arguments):
        return sum(result.sin().sum() for result in one(*arguments))

    case.check(*vmap(one, (0, 0, None, None))(inputs, cell, kernel, bias))
    by_kernel = vmap(grad(loss, 2), (0, 0, None, None))(inputs, cell, kernel, bias)
    for n in range(len(inputs)):
        want = grad(loss, 2)(inputs[n], cell[n], kernel, bias)
        assert_close("kernel", by_kernel[n], want, 1e-10)


def test_jacobian_and_forward_mode():
    case = Case("fo")
    inputs, *rest = case.arguments
    tangent = torch.rand_like(inputs)

    def outputs(inputs):
        return case.run(inputs, *rest)[0]

    jacobian = jacrev(outputs)(inputs)
    want = torch.autograd.functional.jacobian(outputs, inputs)
    assert_close("jacobian", jacobian, want, 1e-10)
    along = torch.tensordot(want, tangent, 3)
    assert_close("jvp", jvp(outputs, (inputs,), (tangent,))[1], along, 1e-10)
    with forward_ad.dual_level():
        dual = outputs(forward_ad.make_dual(inputs, tangent))
        assert_close("dual", forward_ad.unpack_dual(dual).tangent, along, 1e-10)


@poolings
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_batch_of_gradients(dtype, pooling):
    """The gradient arrives by the outputs, by the last cell or by both."""
    case = Case(pooling, scale="steps", dtype=dtype)
    arguments = [a.requires_grad_() for a in case.arguments]
    outputs, last = case.run(*arguments)
    both = torch.cat([outputs.flatten(1), last.to(outputs.dtype)], 1)
    for results in (outputs, last, both):
        above = torch.rand((3, *results.shape), dtype=results.dtype)
        options = {
            "retain_graph": True,
            "allow_unused": True,
            "materialize_grads": True,
        }
        batched = torch.autograd.grad(
            results, arguments, above, is_grads_batched=True, **options
        )
        for n in range(3):
            want = torch.autograd.grad(results, arguments, above[n], **options)
            for name, g, w in zip(NAMES, batched, want, strict=True):
                assert_close(name, g[n], w, 1e-5 if dtype == "float32" else 1e-10)


def test_batches_of_gradients_of_the_scan_and_of_the_loss():
    states = [torch.rand(2, 70, 3, requires_grad=True) for _ in range(2)]
    logits = [torch.rand(2, 3, 7, requires_grad=True)]
    initial, targets = torch.zeros(2, 3), torch.arange(6).reshape(2, 3)
    for function, arguments in (
        (lambda *a: backend.linear_scan(*a, initial, True), states),
        (lambda a: cross_entropy(a, targets), logits),
    ):
        result = function(*arguments)
        above = torch.rand((3, *result.shape))
        batched = torch.autograd.grad(
            result, arguments, above, is_grads_batched=True, retain_graph=True
        )
        for n in range(3):
            want = torch.autograd.grad(result, arguments, above[n], retain_graph=True)
            for g, w in zip(batched, want, strict=True):
                assert_close("gradient", g[n], w)


class Tagged(torch.Tensor):
    """A subclass of a tensor. The results of a kernel would not be of this class."""


def test_what_is_recorded(kernels):
    tensor = torch.zeros(1, 1, 1)
    assert dispatch.kernels_for(tensor) is kernels
    assert dispatch.kernels_for(tensor, tensor.as_subclass(Tagged)) is None
    assert dispatch.kernels_for(torch.nn.Parameter(tensor)) is kernels
    with Recorder():
        assert dispatch.kernels_for(tensor) is None
    with forward_ad.dual_level():
        assert dispatch.kernels_for(tensor) is None
    vmap(lambda row: dispatch.is_recorded(row) or pytest.fail("not seen"))
    assert dispatch.kernels_for(tensor) is kernels


shapes = st.tuples(
    st.integers(1, 3),
    st.one_of(st.integers(1, 40), st.sampled_from([64, 257, 1000])),
    st.integers(1, 3),
)


@pytest.mark.parametrize("kernels", ["loops"], indirect=True)
@settings(max_examples=20)
@given(shape=shapes, reverse=st.booleans(), doubling=st.booleans())
def test_plain_scan(shape, reverse, doubling):
    rng = np.random.default_rng(shape[1])
    decay, inputs = rng.uniform(size=shape), rng.normal(size=shape)
    arrays = decay, inputs, rng.normal(size=(shape[0], shape[2]))
    weight = rng.normal(size=shape)
    tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
    with pytest.MonkeyPatch.context() as patch:
        if doubling:
            patch.setattr(recorded, "may_change", lambda time: True)
        states = recorded.linear_scan(*tensors, reverse)
    assert_close("states", states, reference.linear_scan(*arrays, reverse), 1e-10)
    gradients = torch.autograd.grad((states * torch.tensor(weight)).sum(), tensors)
    want = reference.linear_scan_gradients(*arrays, weight, reverse)
    for name, g, w in zip(("decay", "inputs", "state"), gradients, want, strict=True):
        assert_close(name, g, w, 1e-10)


@pytest.mark.parametrize("kernels", ["loops"], indirect=True)
def test_steps_out_of_reach_are_not_numbers(monkeypatch):
    monkeypatch.setattr(recorded, "ROUNDS", 3)
    monkeypatch.setattr(recorded, "REACH", 8)
    decay, inputs = torch.rand(2, 10, 3), torch.rand(2, 10, 3)
    states = recorded._doubling(decay, inputs, torch.zeros(2, 3))
    want = loops.linear_scan(
        decay.transpose(0, 1), inputs.transpose(0, 1), torch.zeros(2, 3), False
    )
    assert_close("states", states[:, :7], want.transpose(0, 1)[:, :7])
    assert states[:, 7:].isnan().all()
