"""Triton: the scan and the pooling of PyTorch on a GPU.

A lane is one unit of one sequence. A program computes some lanes in a loop over time,
keeps their states in registers, and reads and writes every array once. Reading memory
takes long, so a program reads the values of several steps before it computes the first.
All arrays are time-major and contiguous.

If there are too few lanes for a GPU, time is cut into chunks that run side by side, in
two passes. A chunk maps the state before it to `product * state + end`. The first pass
computes `product` and `end` of each chunk. In the second pass each chunk starts from
its true state, which follows from the initial state and the chunks before it. So the
arrays that decide the state are read twice.

The poolings and their gradients are those of `ops/equations.py`. They are written again
here, for the values in registers: the functions there compute on whole arrays, and each
of their operations would be a launch that reads and writes an array.
"""

import torch
import triton
import triton.language as tl

from keras_qrnn.ops.equations import GATES
from keras_qrnn.ops.torch.shared import shifted

# The lanes of one program. They are few: a small batch must spread over the whole GPU.
LANES = 32
# The number of steps that are read together, a group. `_read` spells this number out.
STEPS = tl.constexpr(8)
# The number of lanes times chunks that fills a GPU, and the fewest steps of a chunk.
FULL = 2**16 - 1
SHORTEST = 32


def linear_scan(
    decay: torch.Tensor,
    inputs: torch.Tensor,
    initial_state: torch.Tensor,
    reverse: bool,
) -> torch.Tensor:
    """The states `(time, batch, units)`, of the shape of `decay` and `inputs`."""
    decay, inputs = decay.contiguous(), inputs.contiguous()
    states, time = torch.empty_like(inputs), len(inputs)
    width = initial_state.numel()
    first, step = ((time - 1) * width, -width) if reverse else (0, width)
    _launch(
        _scan_kernel, time, initial_state.contiguous(), (states,),
        decay, inputs, width, first, step,
    )  # fmt: skip
    return states


def scan_gradients(
    decay: torch.Tensor,
    initial_state: torch.Tensor,
    states: torch.Tensor,
    gradient: torch.Tensor,
    reverse: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients by `decay` and `inputs`. `gradient` is the gradient by `states`.

    It needs no kernel of its own: the adjoint is a scan in the other direction.
    """
    zeros = torch.zeros_like(initial_state)
    following = shifted(decay, zeros, not reverse)
    adjoint = linear_scan(following, gradient, zeros, not reverse)
    return adjoint * shifted(states, initial_state, reverse), adjoint


def pool(
    gates: torch.Tensor,
    initial_state: torch.Tensor,
    update_scale: torch.Tensor | float | None,
    pooling: str,
    activate: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The outputs and the cell states of all steps, each `(time, batch, units)`.

    The outputs have the dtype of `gates`, the cell states that of `initial_state`.
    Under f-pooling in float32 or float64 the two are one tensor. `gates` has shape
    `(time, batch, len(GATES[pooling]) * units)`. `initial_state` has shape
    `(batch, units)` and the accumulator's dtype.
    """
    cells = initial_state.new_empty((len(gates), *initial_state.shape))
    outputs = cells
    if pooling != "f" or gates.dtype != cells.dtype:
        outputs = torch.empty_like(cells, dtype=gates.dtype)
    mask, number = _mask_and_number(update_scale, cells.shape)
    _launch(
        _pool_kernel, len(gates), initial_state.contiguous(), (outputs, cells, None),
        gates.contiguous(), mask, *_sizes(initial_state, gates),
        **_constants(number, pooling, activate),
    )  # fmt: skip
    return outputs, cells


def pool_for_inference(
    gates: torch.Tensor,
    initial_state: torch.Tensor,
    update_scale: torch.Tensor | float | None,
    pooling: str,
    activate: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The outputs `(time, batch, units)` and the last cell state `(batch, units)`.

    The other cell states are not stored.
    """
    state = initial_state.to(torch.promote_types(gates.dtype, torch.float32))
    outputs = gates.new_empty((len(gates), *state.shape))
    last = state.new_empty(state.shape)
    mask, number = _mask_and_number(update_scale, outputs.shape)
    _launch(
        _pool_kernel, len(gates), state.contiguous(), (outputs, None, last),
        gates.contiguous(), mask, *_sizes(state, gates),
        **_constants(number, pooling, activate),
    )  # fmt: skip
    return outputs, last


def pool_gradients(
    gates: torch.Tensor,
    initial_state: torch.Tensor,
    update_scale: torch.Tensor | float | None,
    pooling: str,
    activate: bool,
    cells: torch.Tensor,
    d_outputs: torch.Tensor,
    d_last: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients by `gates` and by `initial_state`, of their shapes and dtypes."""
    gates, initial_state = gates.contiguous(), initial_state.contiguous()
    d_gates, d_initial = torch.empty_like(gates), torch.empty_like(initial_state)
    mask, number = _mask_and_number(update_scale, cells.shape)
    _launch(
        _pool_gradient_kernel, len(gates), d_last.to(cells.dtype).contiguous(),
        (d_gates, d_initial), gates, initial_state, mask, cells,
        d_outputs.contiguous(), *_sizes(initial_state, gates),
        **_constants(number, pooling, activate),
    )  # fmt: skip
    return d_gates, d_initial


def _sizes(state: torch.Tensor, gates: torch.Tensor) -> tuple[int, int, int]:
    """The units, the elements of one step of the states, and those of the gates."""
    return state.shape[1], state.numel(), gates[0].numel()


def _constants(number: float, pooling: str, activate: bool) -> dict:
    return {
        "SCALE": number,
        "POOLING": pooling,
        "GATES_COUNT": len(GATES[pooling]),
        "ACTIVATE": activate,
    }


def _mask_and_number(
    update_scale: torch.Tensor | float | None, shape: torch.Size
) -> tuple[torch.Tensor | None, float]:
    """`update_scale` as a tensor of `shape` or None, and as a number, else 1."""
    if isinstance(update_scale, torch.Tensor):
        return update_scale.expand(shape).contiguous(), 1.0
    return None, 1.0 if update_scale is None else update_scale


def _launch(
    kernel: triton.JITFunction,
    time: int,
    state: torch.Tensor,
    results: tuple[torch.Tensor | None, ...],
    *arguments,
    **constants,
) -> None:
    """Runs `kernel` from `state` `(batch, units)`. The kernel writes `results`."""
    lanes, length = state.numel(), chunk_length(time, state.numel())
    if not lanes:  # a GPU refuses to launch no programs
        return
    chunks = triton.cdiv(time, length)
    products = ends = None
    passes = [(state, *results)]
    if chunks > 1:
        products, ends = state.new_empty((2, chunks, lanes))
        passes = [(None,) * len(passes[0]), *passes]
    with torch.cuda.device_of(state):
        for written in passes:
            kernel[(triton.cdiv(lanes, LANES), chunks)](
                *written, products, ends, time, length, *arguments,
                **constants, LANES=LANES, num_warps=LANES // 32,
            )  # fmt: skip


def chunk_length(time: int, lanes: int) -> int:
    """The number of steps of a chunk. It is `time` if there would be fewer than 3."""
    chunks = min(FULL // max(lanes, 1), time // SHORTEST)
    if chunks < 3:
        return time
    return triton.cdiv(time, chunks * STEPS.value) * STEPS.value


@triton.jit
def _read(at, step, inside, COUNT: tl.constexpr):
    """Reads `COUNT` steps, which is `STEPS` or 1. Returns a tuple of their values."""
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
        values = (values[0], b, c, d, e, f, g, h)  # type: ignore[assignment]
    return values


@triton.jit
def _lanes_and_chunk(width, time, length, LANES: tl.constexpr):
    """A program's lanes, its chunk, and the chunk's first step and number of steps."""
    lane = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    chunk = tl.program_id(1).to(tl.int64)
    start = chunk * length
    return lane, lane < width, chunk, start, tl.minimum(length, time - start)


@triton.jit
def _state_before(initial_state, products, ends, lane, inside, width, chunk):
    """The state before the first step of `chunk`. In the first pass it is zeros."""
    if initial_state is None:
        state = tl.full(lane.shape, 0, products.dtype.element_ty)
    else:
        state = tl.load(initial_state + lane, inside, other=0)
        if products is not None:
            state, _ = _scan(
                products, ends, None, lane, width, state, state, inside, chunk
            )
    return state


@triton.jit
def _scan(decay, inputs, states, at, step, state, product, inside, time):
    """Scans `time` steps. Returns the last state and `product` times all decays."""
    groups = time // STEPS
    for _ in range(groups):
        state, product = _scan_steps(
            decay, inputs, states, at, step, state, product, inside, STEPS
        )
        at += STEPS * step
    for _ in range(groups * STEPS, time):
        state, product = _scan_steps(
            decay, inputs, states, at, step, state, product, inside, 1
        )
        at += step
    return state, product


@triton.jit
def _scan_steps(
    decay, inputs, states, at, step, state, product, inside, COUNT: tl.constexpr
):  # fmt: skip
    ds = _read(decay + at, step, inside, COUNT)
    xs = _read(inputs + at, step, inside, COUNT)
    for n in tl.static_range(COUNT):
        state = ds[n] * state + xs[n]
        product *= ds[n]
        if states is not None:
            tl.store(states + at, state, inside)
        at += step
    return state, product


@triton.jit
def _scan_kernel(
    initial_state,
    states,
    products,
    ends,
    time,
    length,
    decay,
    inputs,
    width,
    first,
    step,
    LANES: tl.constexpr,
):
    width, step = tl.cast(width, tl.int64), tl.cast(step, tl.int64)
    lane, inside, chunk, start, count = _lanes_and_chunk(width, time, length, LANES)
    state = _state_before(initial_state, products, ends, lane, inside, width, chunk)
    product = tl.full(state.shape, 1, state.dtype)
    at = lane + first + start * step
    state, product = _scan(
        decay, inputs, states, at, step, state, product, inside, count
    )
    if initial_state is None:
        tl.store(products + chunk * width + lane, product, inside)
        tl.store(ends + chunk * width + lane, state, inside)


@triton.jit
def _sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def _tanh(x):
    # tanh is a difference of sigmoids. Near zero it would cancel: there six terms of a
    # continued fraction are used.
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
def _update_gate(value, like, ACTIVATE: tl.constexpr):
    """u = 1 - f; from a logit as sigmoid(-logit), which keeps its digits near 0."""
    gate = value.to(like.dtype)
    return _sigmoid(-gate) if ACTIVATE else 1 - gate


@triton.jit
def _candidate(value, like, ACTIVATE: tl.constexpr):
    candidate = value.to(like.dtype)
    if ACTIVATE:
        candidate = _tanh(candidate)
    return candidate


@triton.jit
def _pool_kernel(
    initial_state,
    outputs,
    cells,
    last,
    products,
    ends,
    time,
    length,
    gates,
    mask,
    units,
    width,
    gates_width,
    SCALE: tl.constexpr,
    POOLING: tl.constexpr,
    GATES_COUNT: tl.constexpr,
    ACTIVATE: tl.constexpr,
    LANES: tl.constexpr,
):
    width, gates_width = tl.cast(width, tl.int64), tl.cast(gates_width, tl.int64)
    lane, inside, chunk, start, count = _lanes_and_chunk(width, time, length, LANES)
    cell = _state_before(initial_state, products, ends, lane, inside, width, chunk)
    product = tl.full(cell.shape, 1, cell.dtype)
    at = lane + start * width
    z_at = lane // units * (GATES_COUNT * units) + lane % units + start * gates_width
    groups = count // STEPS
    for _ in range(groups):
        cell, product = _pool_steps(
            outputs, cells, gates, mask, units, width, gates_width,
            at, z_at, inside, cell, product, SCALE, POOLING, ACTIVATE, STEPS,
        )  # fmt: skip
        at += STEPS * width
        z_at += STEPS * gates_width
    for _ in range(groups * STEPS, count):
        cell, product = _pool_steps(
            outputs, cells, gates, mask, units, width, gates_width,
            at, z_at, inside, cell, product, SCALE, POOLING, ACTIVATE, 1,
        )  # fmt: skip
        at += width
        z_at += gates_width
    if initial_state is None:
        tl.store(products + chunk * width + lane, product, inside)
        tl.store(ends + chunk * width + lane, cell, inside)
    if last is not None:
        ends_here = tl.where(start + count == time, width, 0)
        tl.store(last + lane, cell, lane < ends_here)


@triton.jit
def _pool_steps(
    outputs,
    cells,
    gates,
    mask,
    units,
    width,
    gates_width,
    at,
    z_at,
    inside,
    cell,
    product,
    SCALE: tl.constexpr,
    POOLING: tl.constexpr,
    ACTIVATE: tl.constexpr,
    COUNT: tl.constexpr,
):
    """Pools `COUNT` steps. Returns the cell state and `product` times their decays."""
    z_at += gates
    zs = _read(z_at, gates_width, inside, COUNT)
    fs = _read(z_at + units, gates_width, inside, COUNT)
    if POOLING != "f" and outputs is not None:
        os = _read(z_at + 2 * units, gates_width, inside, COUNT)
    if POOLING == "ifo":
        is_ = _read(z_at + 3 * units, gates_width, inside, COUNT)
    if mask is not None:
        scales = _read(mask + at, width, inside, COUNT)
    for n in tl.static_range(COUNT):
        z = _candidate(zs[n], cell, ACTIVATE)
        update_gate = _update_gate(fs[n], cell, ACTIVATE)
        scale = tl.full(cell.shape, SCALE, cell.dtype)
        if mask is not None:
            scale = scales[n].to(cell.dtype)
        update = scale * update_gate
        if POOLING == "ifo":
            i = _gate(is_[n], cell, ACTIVATE)
            cell = (1 - update) * cell + scale * i * z
        else:
            cell = (1 - update) * cell + update * z
        product *= 1 - update
        if cells is not None:
            tl.store(cells + at, cell, inside)
        if outputs is not None:
            output = cell
            if POOLING != "f":
                output *= _gate(os[n], cell, ACTIVATE)
            tl.store(outputs + at, output, inside)
        at += width
    return cell, product


@triton.jit
def _pool_gradient_kernel(
    d_last,
    d_gates,
    d_initial,
    products,
    ends,
    time,
    length,
    gates,
    initial_state,
    mask,
    cells,
    d_outputs,
    units,
    width,
    gates_width,
    SCALE: tl.constexpr,
    POOLING: tl.constexpr,
    GATES_COUNT: tl.constexpr,
    ACTIVATE: tl.constexpr,
    LANES: tl.constexpr,
):
    width, gates_width = tl.cast(width, tl.int64), tl.cast(gates_width, tl.int64)
    # Steps and chunks are counted from the last step. The loop runs backwards in time.
    lane, inside, chunk, start, count = _lanes_and_chunk(width, time, length, LANES)
    carried = _state_before(d_last, products, ends, lane, inside, width, chunk)
    product = tl.full(carried.shape, 1, carried.dtype)
    step = time - 1 - start
    at = lane + step * width
    z_at = lane // units * (GATES_COUNT * units) + lane % units + step * gates_width
    initial = tl.load(initial_state + lane, inside, other=0)
    cell = tl.load(cells + at, inside, other=0)
    # The first step of time has no cell state before it, so no group contains it.
    groups = tl.minimum(count, step) // STEPS
    for _ in range(groups):
        carried, product, cell = _pool_gradient_steps(
            d_gates, gates, mask, cells, d_outputs, units, width, gates_width,
            at, z_at, inside, inside, carried, product, cell, initial,
            SCALE, POOLING, ACTIVATE, STEPS,
        )  # fmt: skip
        at -= STEPS * width
        z_at -= STEPS * gates_width
    for _ in range(groups * STEPS, count):
        carried, product, cell = _pool_gradient_steps(
            d_gates, gates, mask, cells, d_outputs, units, width, gates_width,
            at, z_at, inside, inside & (at >= width), carried, product, cell, initial,
            SCALE, POOLING, ACTIVATE, 1,
        )  # fmt: skip
        at -= width
        z_at -= gates_width
    if d_last is None:
        tl.store(products + chunk * width + lane, product, inside)
        tl.store(ends + chunk * width + lane, carried, inside)
    else:
        ends_here = tl.where(start + count == time, width, 0)
        tl.store(d_initial + lane, carried, lane < ends_here)


@triton.jit
def _pool_gradient_steps(
    d_gates,
    gates,
    mask,
    cells,
    d_outputs,
    units,
    width,
    gates_width,
    at,
    z_at,
    inside,
    has_previous,
    carried,
    product,
    cell,
    initial,
    SCALE: tl.constexpr,
    POOLING: tl.constexpr,
    ACTIVATE: tl.constexpr,
    COUNT: tl.constexpr,
):
    """Goes back `COUNT` steps. Returns `carried`, `product` and cell state there."""
    step, gates_step = -width, -gates_width
    z_from = gates + z_at
    fs = _read(z_from + units, gates_step, inside, COUNT)
    if POOLING != "f":
        os = _read(z_from + 2 * units, gates_step, inside, COUNT)
    if mask is not None:
        scales = _read(mask + at, step, inside, COUNT)
    d_os = _read(d_outputs + at, step, inside, COUNT)
    if d_gates is not None:
        zs = _read(z_from, gates_step, inside, COUNT)
        if POOLING == "ifo":
            is_ = _read(z_from + 3 * units, gates_step, inside, COUNT)
        previous_cells = _read(cells + at + step, step, has_previous, COUNT)
        d_z_at = d_gates + z_at
    for n in tl.static_range(COUNT):
        update_gate = _update_gate(fs[n], carried, ACTIVATE)
        scale = tl.full(carried.shape, SCALE, carried.dtype)
        if mask is not None:
            scale = scales[n].to(carried.dtype)
        update = scale * update_gate
        d_output = d_os[n].to(carried.dtype)
        if POOLING == "f":
            adjoint = carried + d_output
        else:
            o = _gate(os[n], carried, ACTIVATE)
            adjoint = carried + d_output * o
        if d_gates is not None:
            z = _candidate(zs[n], carried, ACTIVATE)
            previous = tl.where(has_previous, previous_cells[n], initial)
            if POOLING != "f":
                d_o = d_output * cell
                if ACTIVATE:
                    d_o *= o * (1 - o)
                tl.store(d_z_at + 2 * units, d_o, inside)
            if POOLING == "ifo":
                i = _gate(is_[n], carried, ACTIVATE)
                d_z = adjoint * scale * i
                d_f = adjoint * scale * previous
                d_i = adjoint * scale * z
                if ACTIVATE:
                    d_i *= i * (1 - i)
                tl.store(d_z_at + 3 * units, d_i, inside)
            else:
                d_z = adjoint * update
                d_f = adjoint * scale * (previous - z)
            if ACTIVATE:
                d_z *= 1 - z * z
                d_f *= update_gate * (1 - update_gate)
            tl.store(d_z_at, d_z, inside)
            tl.store(d_z_at + units, d_f, inside)
            cell = previous
            d_z_at += gates_step
        carried = adjoint * (1 - update)
        product *= 1 - update
    return carried, product, cell
