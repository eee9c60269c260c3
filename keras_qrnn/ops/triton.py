"""Triton: the scan and the pooling on a GPU, as PyTorch uses them there.

A lane is one unit of one sequence; it keeps its state in a register over a loop
over time, and reads and writes every array once. Memory answers late: what several
steps need is asked for before the first of them is computed. All arrays are
time-major and contiguous.
"""

import torch
import triton
import triton.language as tl

# Lanes of one program. Few: a small batch must still spread over the whole GPU.
LANES = 32
# Steps whose values are read together: the number that `_read` spells out.
STEPS = tl.constexpr(8)


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
    cells = initial_state.new_empty((len(gates), *initial_state.shape))
    outputs = cells
    if pooling != "f" or gates.dtype != cells.dtype:
        outputs = torch.empty_like(cells, dtype=gates.dtype)
    _pool_to(outputs, cells, None, gates, initial_state, keep, pooling, activate)
    return outputs, cells


def pool_for_inference(
    gates: torch.Tensor,
    initial_state: torch.Tensor,
    keep: torch.Tensor | float | None,
    pooling: str,
    activate: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs and the last cell state: of the others nothing is written."""
    state = initial_state.to(torch.promote_types(gates.dtype, torch.float32))
    outputs, last = gates.new_empty((len(gates), *state.shape)), torch.empty_like(state)
    _pool_to(outputs, None, last, gates, state, keep, pooling, activate)
    return outputs, last


def _pool_to(
    outputs: torch.Tensor,
    cells: torch.Tensor | None,
    last: torch.Tensor | None,
    gates: torch.Tensor,
    initial_state: torch.Tensor,
    keep: torch.Tensor | float | None,
    pooling: str,
    activate: bool,
) -> None:
    """Fills `outputs` and, if given, `cells` and the last of them."""
    gates, initial_state = gates.contiguous(), initial_state.contiguous()
    mask, number = _mask_and_number(keep, outputs.shape)
    _launch(
        _pool_kernel, initial_state.numel(),
        gates, initial_state, mask, outputs, cells, last, len(gates),
        initial_state.shape[1], initial_state.numel(), gates[0].numel(),
        KEEP=number, POOLING=pooling, ACTIVATE=activate,
    )  # fmt: skip


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
def _read(at, step, inside, COUNT: tl.constexpr):
    """The values of `COUNT` steps, `STEPS` or 1, as a tuple."""
    values = (tl.load(at, inside, other=0),)
    if COUNT > 1:
        b = tl.load(at + step, inside, other=0)
        at += 2 * step
        c = tl.load(at, inside, other=0)
        d = tl.load(at + step, inside, other=0)
        at += 2 * step
        e = tl.load(at, inside, other=0)
        f = tl.load(at + step, inside, other=0)
        at += 2 * step
        g = tl.load(at, inside, other=0)
        h = tl.load(at + step, inside, other=0)
        values = (values[0], b, c, d, e, f, g, h)
    return values


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
    blocks = time // STEPS
    for _ in range(blocks):
        state = _scan_steps(decay, inputs, states, at, step, state, inside, STEPS)
        at += STEPS * step
    for _ in range(blocks * STEPS, time):
        state = _scan_steps(decay, inputs, states, at, step, state, inside, 1)
        at += step


@triton.jit
def _scan_steps(
    decay, inputs, states, at, step, state, inside, COUNT: tl.constexpr
):  # fmt: skip
    ds = _read(decay + at, step, inside, COUNT)
    xs = _read(inputs + at, step, inside, COUNT)
    for n in tl.static_range(COUNT):
        state = ds[n] * state + xs[n]
        tl.store(states + at, state, inside)
        at += step
    return state


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
def _gate(value, like, ACTIVATE: tl.constexpr):
    gate = value.to(like.dtype)
    if ACTIVATE:
        gate = _sigmoid(gate)
    return gate


@triton.jit
def _candidate(value, like, ACTIVATE: tl.constexpr):
    candidate = value.to(like.dtype)
    if ACTIVATE:
        candidate = _tanh(candidate)
    return candidate


@triton.jit
def _pool_kernel(
    gates,
    initial_state,
    mask,
    outputs,
    cells,
    last,
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
    blocks = time // STEPS
    for _ in range(blocks):
        cell = _pool_steps(
            gates, mask, outputs, cells, units, width, gates_width,
            at, z_at, inside, cell, KEEP, POOLING, ACTIVATE, STEPS,
        )  # fmt: skip
        at += STEPS * width
        z_at += STEPS * gates_width
    for _ in range(blocks * STEPS, time):
        cell = _pool_steps(
            gates, mask, outputs, cells, units, width, gates_width,
            at, z_at, inside, cell, KEEP, POOLING, ACTIVATE, 1,
        )  # fmt: skip
        at += width
        z_at += gates_width
    if last is not None:
        tl.store(last + lane, cell, inside)


@triton.jit
def _pool_steps(
    gates,
    mask,
    outputs,
    cells,
    units,
    width,
    gates_width,
    at,
    z_at,
    inside,
    cell,
    KEEP: tl.constexpr,
    POOLING: tl.constexpr,
    ACTIVATE: tl.constexpr,
    COUNT: tl.constexpr,
):
    """The cell state after `COUNT` steps."""
    z_at += gates
    zs = _read(z_at, gates_width, inside, COUNT)
    fs = _read(z_at + units, gates_width, inside, COUNT)
    if POOLING != "f":
        os = _read(z_at + 2 * units, gates_width, inside, COUNT)
    if POOLING == "ifo":
        is_ = _read(z_at + 3 * units, gates_width, inside, COUNT)
    if mask is not None:
        factors = _read(mask + at, width, inside, COUNT)
    for n in tl.static_range(COUNT):
        z = _candidate(zs[n], cell, ACTIVATE)
        f = _gate(fs[n], cell, ACTIVATE)
        factor = tl.full(cell.shape, KEEP, cell.dtype)
        if mask is not None:
            factor = factors[n].to(cell.dtype)
        update = factor * (1 - f)
        if POOLING == "ifo":
            i = _gate(is_[n], cell, ACTIVATE)
            cell = (1 - update) * cell + factor * i * z
        else:
            cell = (1 - update) * cell + update * z
        if cells is not None:
            tl.store(cells + at, cell, inside)
        output = cell
        if POOLING != "f":
            output *= _gate(os[n], cell, ACTIVATE)
        tl.store(outputs + at, output, inside)
        at += width
    return cell


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
    # Before the first step of all there is no other.
    blocks = (time - 1) // STEPS
    for _ in range(blocks):
        adjoint, cell = _pool_gradient_steps(
            gates, mask, cells, d_outputs, d_gates, units, width, gates_width,
            at, z_at, inside, adjoint, cell, initial,
            KEEP, POOLING, ACTIVATE, STEPS, True,
        )  # fmt: skip
        at -= STEPS * width
        z_at -= STEPS * gates_width
    for _ in range(blocks * STEPS, time - 1):
        adjoint, cell = _pool_gradient_steps(
            gates, mask, cells, d_outputs, d_gates, units, width, gates_width,
            at, z_at, inside, adjoint, cell, initial,
            KEEP, POOLING, ACTIVATE, 1, True,
        )  # fmt: skip
        at -= width
        z_at -= gates_width
    adjoint, cell = _pool_gradient_steps(
        gates, mask, cells, d_outputs, d_gates, units, width, gates_width,
        at, z_at, inside, adjoint, cell, initial,
        KEEP, POOLING, ACTIVATE, 1, False,
    )  # fmt: skip
    tl.store(d_initial + lane, adjoint, inside)


@triton.jit
def _pool_gradient_steps(
    gates,
    mask,
    cells,
    d_outputs,
    d_gates,
    units,
    width,
    gates_width,
    at,
    z_at,
    inside,
    adjoint,
    cell,
    initial,
    KEEP: tl.constexpr,
    POOLING: tl.constexpr,
    ACTIVATE: tl.constexpr,
    COUNT: tl.constexpr,
    HAS_PREVIOUS: tl.constexpr,
):
    """The adjoint and the cell state before `COUNT` steps, the last one first."""
    step, gates_step = -width, -gates_width
    z_from = gates + z_at
    zs = _read(z_from, gates_step, inside, COUNT)
    fs = _read(z_from + units, gates_step, inside, COUNT)
    if POOLING != "f":
        os = _read(z_from + 2 * units, gates_step, inside, COUNT)
    if POOLING == "ifo":
        is_ = _read(z_from + 3 * units, gates_step, inside, COUNT)
    if mask is not None:
        factors = _read(mask + at, step, inside, COUNT)
    if HAS_PREVIOUS:
        before = _read(cells + at + step, step, inside, COUNT)
    d_os = _read(d_outputs + at, step, inside, COUNT)
    d_z_at = d_gates + z_at
    for n in tl.static_range(COUNT):
        z = _candidate(zs[n], cell, ACTIVATE)
        f = _gate(fs[n], cell, ACTIVATE)
        factor = tl.full(cell.shape, KEEP, cell.dtype)
        if mask is not None:
            factor = factors[n].to(cell.dtype)
        update = factor * (1 - f)
        previous = initial
        if HAS_PREVIOUS:
            previous = before[n]
        d_output = d_os[n].to(cell.dtype)
        if POOLING == "f":
            adjoint += d_output
        else:
            o = _gate(os[n], cell, ACTIVATE)
            adjoint += d_output * o
            d_o = d_output * cell
            if ACTIVATE:
                d_o *= o * (1 - o)
            tl.store(d_z_at + 2 * units, d_o, inside)
        if POOLING == "ifo":
            i = _gate(is_[n], cell, ACTIVATE)
            d_z = adjoint * factor * i
            d_f = adjoint * factor * previous
            d_i = adjoint * factor * z
            if ACTIVATE:
                d_i *= i * (1 - i)
            tl.store(d_z_at + 3 * units, d_i, inside)
        else:
            d_z = adjoint * update
            d_f = adjoint * factor * (previous - z)
        if ACTIVATE:
            d_z *= 1 - z * z
            d_f *= f * (1 - f)
        tl.store(d_z_at, d_z, inside)
        tl.store(d_z_at + units, d_f, inside)
        adjoint *= 1 - update
        cell = previous
        d_z_at += gates_step
    return adjoint, cell
