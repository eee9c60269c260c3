"""PyTorch: time-major loops of one in-place operation a step, own gradients.

The loops are kernels on a GPU, where each operation would be a launch, and on a CPU
where Numba is installed: `ops/triton.py` and `ops/numba.py`. A layer's memory is kept
time-major, so that a step is one contiguous slice; what goes in and out is a
`(batch, time, ...)` view of it, and a stack of layers pays for a transposition only at
its ends. `linear_scan` alone leaves memory in the order that it is in. To
`torch.compile` a loop over time is one operation.
"""

import functools
import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType

import torch
from torch.autograd import Function
from torch.nn import functional
from torch.nn.grad import conv2d_input, conv2d_weight

from keras_qrnn.ops.blocks import is_cut_in_blocks, piece_length

# Steps in a block of a long scan, half as many in one of a short one: see
# `ops/blocks.py`.
BLOCK = 16
# Pieces of this many steps of all sequences: see `ops/blocks.py`.
PIECE_ROWS = 2048
# Logits that a core's cache holds.
PIECE_LOGITS = 2**19
# The process that PyTorch's threads are of.
PROCESS = os.getpid()
ONEDNN = torch.backends.mkldnn.is_available()
# MKL on a processor of Intel's, whose name newer versions of PyTorch tell.
CPU = getattr(torch.cpu, "get_capabilities", dict)()
MKL_AT_HOME = torch.backends.mkl.is_available() and CPU.get("cpu_name", "").startswith(
    "Intel"
)


def _kernels(tensor: torch.Tensor) -> ModuleType | None:
    """`ops/triton.py` or `ops/numba.py` where it can run, None elsewhere."""
    # What is exported or traced must be operations of PyTorch.
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return None
    if tensor.is_cuda:
        return _triton()
    # A subclass may have no memory of its own; NumPy has no bfloat16.
    plain = tensor.is_cpu and type(tensor) is torch.Tensor
    full = tensor.dtype in (torch.float32, torch.float64)
    return _numba() if plain and full else None


@functools.cache
def _numba() -> ModuleType | None:
    if importlib.util.find_spec("numba") is None:
        return None
    try:
        return importlib.import_module("keras_qrnn.ops.numba")
    except Exception as error:  # noqa: BLE001 (a NumPy too new for it, LLVM not found)
        warnings.warn(
            "keras_qrnn: Numba is installed but cannot be imported, and the scan and "
            f"the pooling run without it. The reason: {error!r}",
            stacklevel=2,
        )
        return None


@functools.cache
def _triton() -> ModuleType | None:
    try:
        kernels = importlib.import_module("keras_qrnn.ops.triton")
        if torch.cuda.is_available():  # a first launch needs more, a C compiler too
            one = torch.ones((1, 1, 1), device="cuda")
            kernels.linear_scan(one, one, one[0], reverse=False)
    except Exception as error:  # noqa: BLE001 (Triton's, a driver's, a compiler's)
        warnings.warn(
            "keras_qrnn: Triton, which comes with PyTorch's CUDA builds for Linux, "
            "cannot run: on the GPU each time step is launched by itself, which is "
            f"slow. The reason: {error!r}",
            stacklevel=2,
        )
        return None
    return kernels


def _is_compiling() -> bool:
    """Whether `torch.compile` traces, not `torch.export`, which uses it too."""
    return torch.compiler.is_compiling() and not torch.compiler.is_exporting()


def _one_operation(schema: str, like: Callable) -> Callable:
    """Makes a function one operation to `torch.compile`, which otherwise would unroll
    its loop and take the longer to compile the more steps there are.

    Args:
        schema: types of arguments and results, as `torch.library` writes them.
        like: of the same arguments, empty tensors of the results' shapes and dtypes.
    """

    def decorate(function: Callable) -> Callable:
        def run(*arguments) -> torch.Tensor | tuple[torch.Tensor, ...]:
            results = function(*arguments)
            if isinstance(results, torch.Tensor):
                return results.contiguous()
            first, second = results  # which must not be one tensor
            return first.contiguous(), (
                second.clone() if second is first else second.contiguous()
            )

        operation = torch.library.custom_op(
            f"keras_qrnn::{function.__name__.strip('_')}",
            run,
            mutates_args=(),
            schema=schema,
        )
        operation.register_fake(like)

        @functools.wraps(function)
        def choose(*arguments) -> torch.Tensor | tuple[torch.Tensor, ...]:
            return (operation if _is_compiling() else function)(*arguments)

        return choose

    return decorate


def linear_scan(
    decay: torch.Tensor,
    inputs: torch.Tensor,
    initial_state: torch.Tensor,
    reverse: bool,
) -> torch.Tensor:
    accumulator = torch.promote_types(inputs.dtype, torch.float32)
    states = _LinearScan.apply(
        decay.to(accumulator).transpose(0, 1),
        inputs.to(accumulator).transpose(0, 1),
        initial_state.to(accumulator),
        reverse,
    )
    return states.transpose(0, 1).to(inputs.dtype)


class _LinearScan(Function):
    """`linear_scan` on time-major tensors of the accumulator's dtype."""

    @staticmethod
    def forward(ctx, decay, inputs, initial_state, reverse):  # noqa: ANN001, ANN205
        states = _scan(decay, inputs, initial_state, reverse)
        ctx.reverse = reverse
        ctx.save_for_backward(decay, initial_state, states)
        return states

    @staticmethod
    def backward(ctx, gradient):  # noqa: ANN001, ANN205
        decay, initial_state, states = ctx.saved_tensors
        second = torch.is_grad_enabled()  # for a second derivative
        run = _differentiable_scan_gradients if second else _scan_gradients
        arguments = decay, initial_state, states, gradient, ctx.reverse
        d_decay, d_inputs = run(*arguments)
        first = -1 if ctx.reverse else 0
        return d_decay, d_inputs, decay[first] * d_inputs[first], None


def _differentiable_scan_gradients(
    decay: torch.Tensor,
    initial_state: torch.Tensor,
    states: torch.Tensor,
    gradient: torch.Tensor,
    reverse: bool,
    scan: Callable = _LinearScan.apply,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`_scan_gradients` through operations that can be differentiated again."""
    zeros = torch.zeros_like(initial_state)
    following = _previous(decay, zeros, not reverse)
    adjoint = scan(following, gradient, zeros, not reverse)
    return adjoint * _previous(states, initial_state, reverse), adjoint


@_one_operation(
    "(Tensor decay, Tensor initial_state, Tensor states, Tensor gradient, "
    "bool reverse) -> (Tensor, Tensor)",
    lambda decay, initial_state, states, gradient, reverse: (
        decay.new_empty(decay.shape),
        decay.new_empty(decay.shape),
    ),
)
def _scan_gradients(
    decay: torch.Tensor,
    initial_state: torch.Tensor,
    states: torch.Tensor,
    gradient: torch.Tensor,
    reverse: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients by decay and inputs; `gradient` is that by `states`."""
    arguments = decay, initial_state, states, gradient, reverse
    if kernels := _kernels(states):
        if hasattr(kernels, "scan_gradients"):
            return kernels.scan_gradients(*arguments)
        return _differentiable_scan_gradients(*arguments, scan=kernels.linear_scan)
    d_inputs, d_decay = gradient.clone(), torch.empty_like(gradient)
    _adjoint_(decay, d_inputs, reverse)
    first, earlier, later = 0, slice(0, -1), slice(1, None)
    if reverse:
        first, earlier, later = -1, later, earlier
    torch.mul(d_inputs[later], states[earlier], out=d_decay[later])
    torch.mul(d_inputs[first], initial_state, out=d_decay[first])
    return d_decay, d_inputs


def _adjoint_(decay: torch.Tensor, gradient: torch.Tensor, reverse: bool) -> None:
    """Turns the gradient by the states into that by the inputs, in place.

    `a[t] = gradient[t] + decay[t + 1] * a[t + 1]`: the scan, the other way.
    """
    if reverse:
        _scan_(decay[:-1], gradient[1:], gradient[0], reverse=False)
    else:
        _scan_(decay[1:], gradient[:-1], gradient[-1], reverse=True)


@_one_operation(
    "(Tensor decay, Tensor inputs, Tensor initial_state, bool reverse) -> Tensor",
    lambda decay, inputs, initial_state, reverse: inputs.new_empty(inputs.shape),
)
def _scan(
    decay: torch.Tensor,
    inputs: torch.Tensor,
    initial_state: torch.Tensor,
    reverse: bool,
) -> torch.Tensor:
    """The states of time-major tensors."""
    if kernels := _kernels(inputs):
        return kernels.linear_scan(decay, inputs, initial_state, reverse)
    states = inputs.clone()
    _scan_(decay, states, initial_state, reverse)
    return states


def _previous(
    sequence: torch.Tensor, initial: torch.Tensor, reverse: bool
) -> torch.Tensor:
    """`sequence` one step later in scan order, `initial` in the first place."""
    if reverse:
        return torch.cat([sequence[1:], initial[None]])
    return torch.cat([initial[None], sequence[:-1]])


def _scan_(
    decay: torch.Tensor, inputs: torch.Tensor, initial: torch.Tensor, reverse: bool
) -> None:
    """Turns `inputs` into the states, in place; time-major."""
    time = inputs.shape[0]
    # What is exported must not depend on the batch, and is smaller in blocks.
    width = 0 if torch.compiler.is_compiling() else inputs[:1].numel()
    if not is_cut_in_blocks(time, width):
        _scan_steps_(decay, inputs, initial, 0, reverse)
        return
    block = BLOCK if time >= BLOCK**2 else BLOCK // 2
    blocks, rest = time // block, time % block  # `divmod` knows no symbols
    at = slice(rest, None) if reverse else slice(0, time - rest)
    # (blocks, steps, batch, units): a slice of all blocks is a step of each.
    d, x = (tensor[at].unflatten(0, (blocks, block)) for tensor in (decay, inputs))
    products, ends = d.prod(1), torch.zeros_like(x[:, 0])
    for d_t, x_t in _in_order(d, x, 1, reverse):
        torch.addcmul(x_t, d_t, ends, out=ends)
    _scan_(products, ends, initial, reverse)
    _scan_steps_(d, x, _previous(ends, initial, reverse), 1, reverse)
    if rest:  # what does not fill a block, before or after
        at = slice(0, rest) if reverse else slice(time - rest, None)
        end = ends[0] if reverse else ends[-1]
        _scan_steps_(decay[at], inputs[at], end, 0, reverse)


def _scan_steps_(
    decay: torch.Tensor,
    inputs: torch.Tensor,
    state: torch.Tensor,
    axis: int,
    reverse: bool,
) -> None:
    for d, x in _in_order(decay, inputs, axis, reverse):
        state = x.addcmul_(d, state)


def _in_order(
    decay: torch.Tensor, inputs: torch.Tensor, axis: int, reverse: bool
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The steps along `axis`, in scan order."""
    steps = [*zip(decay.unbind(axis), inputs.unbind(axis), strict=True)]
    return steps[::-1] if reverse else steps


def pool(
    gates: torch.Tensor,
    initial_state: torch.Tensor,
    keep: torch.Tensor | float | None,
    pooling: str,
    activate: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    if isinstance(keep, torch.Tensor):
        keep = keep.transpose(0, 1)
    half = gates.dtype in (torch.float16, torch.bfloat16)
    kernels, run = _kernels(gates), _Pool.apply
    if kernels and not torch.is_grad_enabled():
        run = kernels.pool_for_inference
    elif not torch.is_grad_enabled() and not half and not _is_compiling():
        run = _pool_
    outputs, last = run(gates.transpose(0, 1), initial_state, keep, pooling, activate)
    return outputs.transpose(0, 1), last


def _pool_(
    gates: torch.Tensor,
    initial_state: torch.Tensor,
    keep: torch.Tensor | float | None,
    pooling: str,
    activate: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`_Pool` in the memory of `gates`, which no gradient needs: on the CPU a new
    page costs more than the arithmetic on it."""
    z, f, *rest = gates.chunk(len(pooling) + 1, dim=-1)
    if activate:
        z.tanh_()
        gates[..., z.shape[-1] :].sigmoid_()
    decay = _decay_(f, keep)
    if pooling == "ifo":
        _times_keep_(z.mul_(rest[1]), keep)
    else:
        z.addcmul_(z, decay, value=-1)
    _scan_(decay, z, initial_state.to(z.dtype), reverse=False)
    # Neither what is returned may keep all of `gates` alive.
    outputs = z.contiguous() if pooling == "f" else rest[0] * z
    return outputs, z[-1].clone()


class _Pool(Function):
    """Activations, scan and output gate as one step of the graph.

    Kept for the gradient: the packed gates as they came and the cell states. All
    else lives for a piece of time only.
    """

    @staticmethod
    def forward(ctx, gates, initial_state, keep, pooling, activate):  # noqa: ANN001, ANN205
        state = initial_state.to(torch.promote_types(gates.dtype, torch.float32))
        mask = keep if isinstance(keep, torch.Tensor) else None
        number = keep if mask is None else None
        outputs, cells = _pool(gates, state, mask, number, pooling, activate)
        ctx.arguments = number, pooling, activate
        ctx.save_for_backward(gates, initial_state, mask, cells)
        # The last state must not keep the sequence alive, nor be changed with it.
        return outputs, cells[-1].clone()

    @staticmethod
    def backward(ctx, d_outputs, d_last):  # noqa: ANN001, ANN205
        gates, initial_state, mask, cells = ctx.saved_tensors
        number, pooling, activate = ctx.arguments
        state = initial_state.to(cells.dtype)
        if torch.is_grad_enabled():  # for a second derivative
            keep, wanted = number if mask is None else mask, ctx.needs_input_grad[:2]
            d_gates, d_state = _differentiable_gradients(
                gates, state, keep, pooling, activate, d_outputs, d_last, wanted
            )
        else:
            d_gates, d_state = _pool_gradients(
                gates, state, mask, number, pooling, activate, cells, d_outputs, d_last
            )
        if d_state is not None:
            d_state = d_state.to(initial_state.dtype)
        return d_gates, d_state, None, None, None


@_one_operation(
    "(Tensor gates, Tensor state, Tensor? mask, float? number, str pooling, "
    "bool activate) -> (Tensor, Tensor)",
    lambda gates, state, *_: (
        gates.new_empty((*gates.shape[:2], state.shape[1])),
        state.new_empty((*gates.shape[:2], state.shape[1])),
    ),
)
def _pool(
    gates: torch.Tensor,
    state: torch.Tensor,
    mask: torch.Tensor | None,
    number: float | None,
    pooling: str,
    activate: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs and cell states."""
    run = kernels.pool if (kernels := _kernels(gates)) else _pool_in_pieces
    return run(gates, state, number if mask is None else mask, pooling, activate)


@_one_operation(
    "(Tensor gates, Tensor state, Tensor? mask, float? number, str pooling, "
    "bool activate, Tensor cells, Tensor d_outputs, Tensor d_last) -> (Tensor, Tensor)",
    lambda gates, state, *_: (
        gates.new_empty(gates.shape),
        state.new_empty(state.shape),
    ),
)
def _pool_gradients(
    gates: torch.Tensor,
    state: torch.Tensor,
    mask: torch.Tensor | None,
    number: float | None,
    pooling: str,
    activate: bool,
    cells: torch.Tensor,
    d_outputs: torch.Tensor,
    d_last: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients by gates and initial state."""
    kernels, keep = _kernels(gates), number if mask is None else mask
    run = kernels.pool_gradients if kernels else _pool_gradients_in_pieces
    return run(gates, state, keep, pooling, activate, cells, d_outputs, d_last)


def _pool_in_pieces(
    gates: torch.Tensor,
    state: torch.Tensor,
    keep: torch.Tensor | float | None,
    pooling: str,
    activate: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs and cell states."""
    cells = state.new_empty((*gates.shape[:2], state.shape[1]))
    outputs = cells
    if pooling != "f" or gates.dtype != cells.dtype:
        outputs = torch.empty_like(cells, dtype=gates.dtype)
    for at in _pieces(*gates.shape[:2], gates.is_cpu):
        z, f, o, i = _activations(gates[at], pooling, activate)
        keep_at = _keep_at(keep, at)
        decay = _decay_(f, keep_at)
        if i is None:
            torch.addcmul(z, decay, z, value=-1, out=cells[at])
        else:
            _times_keep_(torch.mul(z, i, out=cells[at]), keep_at)
        _scan_(decay, cells[at], state, reverse=False)
        state = cells[at][-1]
        if outputs is not cells:
            outputs[at] = cells[at] if o is None else o.mul_(cells[at])
    return outputs, cells


def _pool_gradients_in_pieces(
    gates: torch.Tensor,
    initial_state: torch.Tensor,
    keep: torch.Tensor | float | None,
    pooling: str,
    activate: bool,
    cells: torch.Tensor,
    d_outputs: torch.Tensor,
    d_last: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients by gates and initial state."""
    # time-major memory for the convolution's gradient to come
    d_gates = torch.empty(gates.shape, dtype=gates.dtype, device=gates.device)
    d_state = d_last
    for at in reversed(_pieces(*gates.shape[:2], gates.is_cpu)):
        if at.start:
            previous = cells[at.start - 1 : at.stop - 1]
        else:
            previous = _previous(cells[at], initial_state, reverse=False)
        d_state = _pool_piece_gradient_(
            d_gates[at], gates[at], previous, cells[at], _keep_at(keep, at),
            pooling, activate, d_outputs[at], d_state,
        )  # fmt: skip
    return d_gates, d_state


def _pool_piece_gradient_(
    d_gates: torch.Tensor,
    gates: torch.Tensor,
    previous: torch.Tensor,
    cells: torch.Tensor,
    keep: torch.Tensor | float | None,
    pooling: str,
    activate: bool,
    d_outputs: torch.Tensor,
    d_last: torch.Tensor,
) -> torch.Tensor:
    """Writes `d_gates`; returns the gradient by the initial state."""
    z, f, o, i = _activations(gates, pooling, activate)
    d_outputs = d_outputs.to(z.dtype)
    decay = f if keep is None else _decay_(f.clone(), keep)

    adjoint = torch.empty_like(z)
    if o is None:
        adjoint.copy_(d_outputs)
    else:
        torch.mul(d_outputs, o, out=adjoint)
    adjoint[-1] += d_last
    _adjoint_(decay, adjoint, reverse=False)

    aten = torch.ops.aten
    backward = (aten.tanh_backward, aten.sigmoid_backward) if activate else (None, None)
    of_tanh, of_sigmoid = backward
    d_z, d_f, *d_rest = d_gates.split(z.shape[-1], dim=-1)
    d_initial = decay[0] * adjoint[0]
    if o is not None:
        _through_(d_rest[0], cells * d_outputs, o, of_sigmoid)
    if i is None:
        d_forget = _times_keep_((previous - z).mul_(adjoint), keep)
        d_candidate = torch.addcmul(adjoint, adjoint, decay, value=-1)
    else:
        adjoint = _times_keep_(adjoint, keep)
        d_forget = previous * adjoint
        d_candidate = adjoint * i
        _through_(d_rest[1], adjoint.mul_(z), i, of_sigmoid)
    _through_(d_f, d_forget, f, of_sigmoid)
    _through_(d_z, d_candidate, z, of_tanh)
    return d_initial


def _through_(
    d_gate: torch.Tensor,
    gradient: torch.Tensor,
    gate: torch.Tensor,
    backward: Callable | None,
) -> None:
    """Fills `d_gate` from the gradient by the gate, through its activation if any."""
    if backward is not None and d_gate.dtype == gradient.dtype:
        backward(gradient, gate, grad_input=d_gate)
    else:  # in full precision until it is stored
        d_gate.copy_(gradient if backward is None else backward(gradient, gate))


def _pieces(time: int, batch: int, is_cpu: bool) -> list[slice]:
    """How time is cut: see `ops/blocks.py`."""
    cut = is_cpu and not torch.compiler.is_compiling()
    length = piece_length(time, batch, PIECE_ROWS) if cut else time
    return _slices(time, length)


def _slices(count: int, length: int) -> list[slice]:
    return [slice(at, min(at + length, count)) for at in range(0, count, length)]


def _keep_at(
    keep: torch.Tensor | float | None, at: slice | tuple[slice, slice]
) -> torch.Tensor | float | None:
    return keep[at] if isinstance(keep, torch.Tensor) else keep


def _activations(gates: torch.Tensor, pooling: str, activate: bool) -> tuple:
    """Fresh z, f, o, i in the accumulator's dtype, None where there is none."""
    accumulator = torch.promote_types(gates.dtype, torch.float32)
    z, *others = gates.split(gates.shape[-1] // (len(pooling) + 1), dim=-1)

    def fresh(gate: torch.Tensor) -> torch.Tensor:
        return gate.to(accumulator, copy=True, memory_format=torch.contiguous_format)

    z, others = fresh(z), [fresh(gate) for gate in others]
    if activate:
        z.tanh_()
        for gate in others:
            gate.sigmoid_()
    return z, *others, *[None] * (3 - len(others))


def _decay_(f: torch.Tensor, keep: torch.Tensor | float | None) -> torch.Tensor:
    """`1 - keep * (1 - f)`, in place of f."""
    if keep is None:
        return f
    return _times_keep_(f.sub_(1), keep).add_(1)


def _times_keep_(x: torch.Tensor, keep: torch.Tensor | float | None) -> torch.Tensor:
    return x if keep is None else x.mul_(keep)


def _differentiable_gradients(
    gates: torch.Tensor,
    initial_state: torch.Tensor,
    keep: torch.Tensor | float | None,
    pooling: str,
    activate: bool,
    d_outputs: torch.Tensor,
    d_last: torch.Tensor,
    wanted: tuple[bool, bool],
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """`_Pool.backward` through operations that can be differentiated again.

    None for what is not `wanted`, of the gates and the initial state.
    """
    accumulator = torch.promote_types(gates.dtype, torch.float32)
    z, f, *rest = gates.to(accumulator).chunk(len(pooling) + 1, dim=-1)
    if activate:
        z, f, rest = z.tanh(), f.sigmoid(), [gate.sigmoid() for gate in rest]
    keep = 1.0 if keep is None else keep
    update = keep * (1 - f)
    inputs = keep * rest[1] * z if pooling == "ifo" else update * z
    cells = _LinearScan.apply(1 - update, inputs, initial_state.to(z.dtype), False)
    outputs = cells if pooling == "f" else rest[0] * cells
    sources = [x for x, w in zip((gates, initial_state), wanted, strict=True) if w]
    found = torch.autograd.grad(
        (outputs.to(gates.dtype), cells[-1]),
        sources,
        (d_outputs, d_last),
        create_graph=True,
    )
    found = iter(found)
    return tuple(next(found) if w else None for w in wanted)


def causal_conv(
    inputs: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    inputs = inputs.transpose(0, 1).contiguous()
    run = _Convolution if _takes_convolution(inputs) else _Products
    return run.apply(inputs, kernel, bias).transpose(0, 1)


def _takes_convolution(inputs: torch.Tensor) -> bool:
    """oneDNN's float32 convolution is twice as fast as the products of MKL on other
    processors than Intel's, for which MKL is made: there it is up to twice as slow."""
    float32 = inputs.dtype == torch.float32
    return ONEDNN and inputs.is_cpu and float32 and not MKL_AT_HOME


class _Products(Function):
    """One matrix product for each tap, on views: the window is never copied."""

    @staticmethod
    def forward(ctx, inputs, kernel, bias):  # noqa: ANN001, ANN205
        ctx.save_for_backward(inputs, kernel)
        outputs = None
        for tap, seen in zip(kernel, _seen(inputs, len(kernel)), strict=True):
            if outputs is not None:
                outputs.addmm_(seen, tap)
            elif bias is None:
                outputs = torch.mm(seen, tap)
            else:
                outputs = torch.addmm(bias, seen, tap)
        time = inputs.shape[0] - len(kernel) + 1
        return outputs.view(time, inputs.shape[1], kernel.shape[2])

    @staticmethod
    def backward(ctx, gradient):  # noqa: ANN001, ANN205
        inputs, kernel = ctx.saved_tensors
        d_inputs = d_kernel = d_bias = None
        rows = gradient.reshape(-1, kernel.shape[2])
        if ctx.needs_input_grad[0]:
            d_inputs = torch.zeros_like(inputs)
            for tap, d_seen in zip(kernel, _seen(d_inputs, len(kernel)), strict=True):
                d_seen.addmm_(rows, tap.T)
        if ctx.needs_input_grad[1]:
            taps = _seen(inputs, len(kernel))
            d_kernel = torch.stack([seen.T @ rows for seen in taps])
        if ctx.needs_input_grad[2]:
            d_bias = rows.sum(0)
        return d_inputs, d_kernel, d_bias


def _seen(inputs: torch.Tensor, window: int) -> Iterator[torch.Tensor]:
    """What each tap of a window sees, as rows: views."""
    time = inputs.shape[0] - window + 1
    for j in range(window):
        yield inputs[j : j + time].view(-1, inputs.shape[2])


class _Convolution(Function):
    """The convolution of one image of time by batch pixels, channels last.

    So it needs no copy of its inputs. Each of its three products is given the
    kernel's memory in that order in which oneDNN is fastest: autograd would give
    them all the same.
    """

    @staticmethod
    def forward(ctx, inputs, kernel, bias):  # noqa: ANN001, ANN205
        ctx.save_for_backward(inputs, kernel)
        outputs = functional.conv2d(_image(inputs), _channels_last(kernel), bias)
        return outputs[0].permute(1, 2, 0)

    @staticmethod
    def backward(ctx, gradient):  # noqa: ANN001, ANN205
        inputs, kernel = ctx.saved_tensors
        d_inputs = d_kernel = d_bias = None
        if ctx.needs_input_grad[0]:
            shape, weight = _image(inputs).shape, _channels_last(kernel)
            d_image = conv2d_input(shape, weight, _image(gradient))
            d_inputs = d_image[0].permute(1, 2, 0)
        if ctx.needs_input_grad[1]:
            shape = kernel.permute(2, 1, 0)[..., None].shape
            d_weight = 0
            for at in _pieces(*gradient.shape[:2], is_cpu=True):
                seen = _image(inputs[at.start : at.stop + len(kernel) - 1])
                d_weight = d_weight + conv2d_weight(seen, shape, _image(gradient[at]))
            d_kernel = d_weight[..., 0].permute(2, 1, 0)
        if ctx.needs_input_grad[2]:
            d_bias = gradient.sum((0, 1))
        return d_inputs, d_kernel, d_bias


def _image(sequence: torch.Tensor) -> torch.Tensor:
    return sequence.permute(2, 0, 1)[None]


def _channels_last(kernel: torch.Tensor) -> torch.Tensor:
    """The kernel as a convolution's weight, features innermost in memory."""
    return kernel.permute(2, 0, 1).contiguous()[:, :, None].permute(0, 3, 1, 2)


def conv_pool(
    inputs: torch.Tensor,
    kernel: torch.Tensor,
    bias: torch.Tensor | None,
    initial_state: torch.Tensor,
    keep: torch.Tensor | float | None,
    pooling: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, time = inputs.shape[0], inputs.shape[1] - kernel.shape[0] + 1
    pieces = _pieces(time, batch, inputs.is_cpu)
    if len(pieces) == 1 or torch.is_grad_enabled():
        gates = causal_conv(inputs, kernel, bias)
        return pool(gates, initial_state, keep, pooling, activate=True)
    units = initial_state.shape[1]
    outputs = inputs.new_empty((time, batch, units)).transpose(0, 1)
    state = initial_state
    for at in pieces:
        seen = slice(at.start, at.stop + kernel.shape[0] - 1)
        gates = causal_conv(inputs[:, seen], kernel, bias)
        keep_at = _keep_at(keep, (slice(None), at))
        outputs[:, at], state = pool(gates, state, keep_at, pooling, activate=True)
    return outputs, state


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    flat, classes = logits.flatten(0, -2), targets.flatten().long()
    if logits.is_cpu and not torch.compiler.is_compiling():
        losses = _CrossEntropy.apply(flat, classes)
    else:
        options = {"reduction": "none", "ignore_index": torch.iinfo(torch.long).min}
        losses = functional.cross_entropy(flat, classes, **options)
    return losses.view(targets.shape)


class _CrossEntropy(Function):
    """In pieces that stay in a core's cache: of the logits' size nothing is made but
    their gradient, in place."""

    @staticmethod
    def forward(ctx, logits, targets):  # noqa: ANN001, ANN205
        normalizer = logits.new_empty(len(logits))
        for at in _rows(logits):
            torch.logsumexp(logits[at], -1, out=normalizer[at])
        ctx.save_for_backward(logits, targets, normalizer)
        return normalizer - logits.gather(1, targets[:, None])[:, 0]

    @staticmethod
    def backward(ctx, d_losses):  # noqa: ANN001, ANN205
        logits, targets, normalizer = ctx.saved_tensors
        if torch.is_grad_enabled():  # for a second derivative
            losses = functional.cross_entropy(logits, targets, reduction="none")
            gradient = torch.autograd.grad(losses, logits, d_losses, create_graph=True)
            return *gradient, None
        d_logits, d_losses = torch.empty_like(logits), d_losses[:, None]
        for at in _rows(logits):
            torch.sub(logits[at], normalizer[at, None], out=d_logits[at])
            d_logits[at].exp_().mul_(d_losses[at])
        return d_logits.scatter_add_(1, targets[:, None], -d_losses), None


def _rows(logits: torch.Tensor) -> list[slice]:
    return _slices(len(logits), max(1, PIECE_LOGITS // logits.shape[1]))
