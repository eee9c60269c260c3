"""Triton: the scan and the pooling on a GPU, as PyTorch uses them there.

A lane is one unit of one sequence; it keeps its state in a register over a loop
over time, and reads and writes every array once. All arrays are time-major and
contiguous.
"""

import torch
import triton
import triton.language as tl

# Lanes of one program. Few: a small batch must still spread over the whole GPU.
LANES = 64


def linear_scan(
    decay: torch.Tensor,
    inputs: torch.Tensor,
    initial_state: torch.Tensor,
    reverse: bool,
) -> torch.Tensor:
    """The states, of the shape `(time, batch, units)` of `decay` and `inputs`."""
    decay, inputs = decay.contiguous(), inputs.contiguous()
    states = torch.empty_like(inputs)
    time, width = len(inputs), inputs[0].numel()
    first, step = ((time - 1) * width, -width) if reverse else (0, width)
    _launch(
        _scan_kernel, width,
        decay, inputs, initial_state.contiguous(), states, time, width, first, step,
    )  # fmt: skip
    return states


def pool(
    gates: torch.Tensor,
    initial_state: torch.Tensor,
    keep: torch.Tensor | float | None,
    pooling: str,
    activate: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs in the dtype of `gates`, cell states in that of `initial_state`.

    `gates` has shape `(time, batch, gates * units)`, `initial_state` the shape
    `(batch, units)` and the accumulator's dtype.
    """
    gates, initial_state = gates.contiguous(), initial_state.contiguous()
    cells = initial_state.new_empty((len(gates), *initial_state.shape))
    outputs = cells
    if pooling != "f" or gates.dtype != cells.dtype:
        outputs = torch.empty_like(cells, dtype=gates.dtype)
    mask, number = _mask_and_number(keep, cells.shape)
    _launch(
        _pool_kernel, initial_state.numel(),
        gates, initial_state, mask, outputs, cells, len(gates),
        initial_state.shape[1], initial_state.numel(), gates[0].numel(),
        KEEP=number, POOLING=pooling, ACTIVATE=activate,
    )  # fmt: skip
    return outputs, cells


def pool_gradients(
    gates: torch.Tensor,
    initial_state: torch.Tensor,
    keep: torch.Tensor | float | None,
    pooling: str,
    activate: bool,
    cells: torch.Tensor,
    d_outputs: torch.Tensor,
    d_last: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients by `gates` and by `initial_state`, each in its dtype."""
    gates, initial_state = gates.contiguous(), initial_state.contiguous()
    d_gates, d_initial = torch.empty_like(gates), torch.empty_like(initial_state)
    mask, number = _mask_and_number(keep, cells.shape)
    width, gates_width = initial_state.numel(), gates[0].numel()
    before_last = len(gates) - 1
    _launch(
        _pool_gradient_kernel, width,
        gates, initial_state, mask, cells, d_outputs.contiguous(),
        d_last.contiguous(), d_gates, d_initial, len(gates),
        initial_state.shape[1], width, gates_width,
        before_last * width, before_last * gates_width,
        KEEP=number, POOLING=pooling, ACTIVATE=activate,
    )  # fmt: skip
    return d_gates, d_initial


def _mask_and_number(
    keep: torch.Tensor | float | None, shape: torch.Size
) -> tuple[torch.Tensor | None, float]:
    if isinstance(keep, torch.Tensor):
        return keep.expand(shape).contiguous(), 1.0
    return None, 1.0 if keep is None else keep


def _launch(kernel: triton.JITFunction, lanes: int, *arguments, **constants) -> None:
    with torch.cuda.device_of(arguments[0]):
        kernel[(triton.cdiv(lanes, LANES),)](
            *arguments, **constants, LANES=LANES, num_warps=LANES // 32
        )


@triton.jit
def _scan_kernel(
    decay,
    inputs,
    initial_state,
    states,
    time,
    width,
    first,
    step,
    LANES: tl.constexpr,
):
    lane = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    inside = lane < width
    state = tl.load(initial_state + lane, inside)
    at = lane + first
    for _ in range(time):
        state = tl.load(decay + at, inside) * state + tl.load(inputs + at, inside)
        tl.store(states + at, state, inside)
        at += step


@triton.jit
def _sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def _tanh(x):
    # Near zero the difference cancels; there, six terms of the continued fraction.
    s = x * x
    over = 10395 + s * (1260 + s * 21)
    under = 10395 + s * (4725 + s * (210 + s))
    return tl.where(s < 0.0625, x * over / under, 2 * _sigmoid(2 * x) - 1)


@triton.jit
def _gate(gates, at, inside, like, ACTIVATE: tl.constexpr):
    gate = tl.load(gates + at, inside, other=0).to(like.dtype)
    if ACTIVATE:
        gate = _sigmoid(gate)
    return gate


@triton.jit
def _candidate(gates, at, inside, like, ACTIVATE: tl.constexpr):
    candidate = tl.load(gates + at, inside, other=0).to(like.dtype)
    if ACTIVATE:
        candidate = _tanh(candidate)
    return candidate


@triton.jit
def _factor(mask, at, inside, like, KEEP: tl.constexpr):
    """Zoneout's factor on the update of a state."""
    if mask is None:
        factor = tl.full(like.shape, KEEP, like.dtype)
    else:
        factor = tl.load(mask + at, inside, other=0).to(like.dtype)
    return factor


@triton.jit
def _pool_kernel(
    gates,
    initial_state,
    mask,
    outputs,
    cells,
    time,
    units,
    width,
    gates_width,
    KEEP: tl.constexpr,
    POOLING: tl.constexpr,
    ACTIVATE: tl.constexpr,
    LANES: tl.constexpr,
):
    GATES: tl.constexpr = len(POOLING) + 1
    lane = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    inside = lane < width
    at = lane
    z_at = lane // units * (GATES * units) + lane % units
    cell = tl.load(initial_state + lane, inside, other=0)
    for _ in range(time):
        z = _candidate(gates, z_at, inside, cell, ACTIVATE)
        f = _gate(gates, z_at + units, inside, cell, ACTIVATE)
        factor = _factor(mask, at, inside, cell, KEEP)
        update = factor * (1 - f)
        if POOLING == "ifo":
            i = _gate(gates, z_at + 3 * units, inside, cell, ACTIVATE)
            cell = (1 - update) * cell + factor * i * z
        else:
            cell = (1 - update) * cell + update * z
        tl.store(cells + at, cell, inside)
        output = cell
        if POOLING != "f":
            output *= _gate(gates, z_at + 2 * units, inside, cell, ACTIVATE)
        tl.store(outputs + at, output, inside)
        at += width
        z_at += gates_width


@triton.jit
def _pool_gradient_kernel(
    gates,
    initial_state,
    mask,
    cells,
    d_outputs,
    d_last,
    d_gates,
    d_initial,
    time,
    units,
    width,
    gates_width,
    last,
    last_gates,
    KEEP: tl.constexpr,
    POOLING: tl.constexpr,
    ACTIVATE: tl.constexpr,
    LANES: tl.constexpr,
):
    GATES: tl.constexpr = len(POOLING) + 1
    lane = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    inside = lane < width
    # Of the last step, from which the loop goes back.
    at = lane + last
    z_at = lane // units * (GATES * units) + lane % units + last_gates
    initial = tl.load(initial_state + lane, inside, other=0)
    cell = tl.load(cells + at, inside, other=0)
    adjoint = tl.load(d_last + lane, inside, other=0).to(cell.dtype)
    for n in range(time):
        z = _candidate(gates, z_at, inside, cell, ACTIVATE)
        f = _gate(gates, z_at + units, inside, cell, ACTIVATE)
        factor = _factor(mask, at, inside, cell, KEEP)
        update = factor * (1 - f)
        previous = initial
        if n < time - 1:
            previous = tl.load(cells + at - width, inside, other=0)
        d_output = tl.load(d_outputs + at, inside, other=0).to(cell.dtype)
        if POOLING == "f":
            adjoint += d_output
        else:
            o = _gate(gates, z_at + 2 * units, inside, cell, ACTIVATE)
            adjoint += d_output * o
            d_o = d_output * cell
            if ACTIVATE:
                d_o *= o * (1 - o)
            tl.store(d_gates + z_at + 2 * units, d_o, inside)
        if POOLING == "ifo":
            i = _gate(gates, z_at + 3 * units, inside, cell, ACTIVATE)
            d_z = adjoint * factor * i
            d_f = adjoint * factor * previous
            d_i = adjoint * factor * z
            if ACTIVATE:
                d_i *= i * (1 - i)
            tl.store(d_gates + z_at + 3 * units, d_i, inside)
        else:
            d_z = adjoint * update
            d_f = adjoint * factor * (previous - z)
        if ACTIVATE:
            d_z *= 1 - z * z
            d_f *= f * (1 - f)
        tl.store(d_gates + z_at, d_z, inside)
        tl.store(d_gates + z_at + units, d_f, inside)
        adjoint *= 1 - update
        cell = previous
        at -= width
        z_at -= gates_width
    tl.store(d_initial + lane, adjoint, inside)
