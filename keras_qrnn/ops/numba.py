"""Numba: the scan and the pooling on a CPU, where PyTorch finds it installed.

Every array is read and written once. The innermost loop runs over the units of one
step, which are independent of each other and become vector instructions; threads
share out the sequences or, where there are few, the units.

The threads are PyTorch's own where they can be had. After an operation of PyTorch's
its OpenMP threads wait for the next one in a loop that keeps the cores busy for
milliseconds, and threads of any other kind would have to share the cores with them.
"""

import ctypes
import functools
import itertools
import math
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import torch
from numba import njit
from torch.autograd import forward_ad

from keras_qrnn.ops.torch import PROCESS

# Elements for which one more thread is worth its start.
PER_THREAD = 16384
# What a thread of OpenMP's runs: a function of a pointer.
TASK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
# A product and a sum may be one instruction; nothing else may change a result.
compiled = functools.partial(
    njit, nogil=True, fastmath={"contract"}, error_model="numpy"
)
# Where a row, one step of one sequence, begins in an array. Of an index without a sign
# Numba does not ask whether it counts from the end.
place = np.uintp


def linear_scan(
    decay: torch.Tensor,
    inputs: torch.Tensor,
    initial_state: torch.Tensor,
    reverse: bool,
) -> torch.Tensor:
    """The states, of the shape `(time, batch, units)` of `decay` and `inputs`."""
    time_major, (decay, inputs) = _in_one_order(decay, inputs)
    state, states = _copy(initial_state), torch.empty_like(inputs)
    _launch(_scan(time_major, reverse), decay, inputs, states, state)
    return states if time_major else states.transpose(0, 1)


def scan_gradients(
    decay: torch.Tensor,
    initial_state: torch.Tensor,
    states: torch.Tensor,
    gradient: torch.Tensor,
    reverse: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients by decay and inputs; `gradient` is that by `states`."""
    time_major, (decay, gradient, states) = _in_one_order(decay, gradient, states)
    d_decay, d_inputs = torch.empty_like(decay), torch.empty_like(decay)
    initial_state = initial_state.contiguous()
    adjoint = torch.zeros_like(initial_state)
    _launch(
        _scan_gradient(time_major, reverse),
        decay, states, gradient, initial_state, d_decay, d_inputs, adjoint,
    )  # fmt: skip
    if not time_major:
        d_decay, d_inputs = d_decay.transpose(0, 1), d_inputs.transpose(0, 1)
    return d_decay, d_inputs


def pool(
    gates: torch.Tensor,
    initial_state: torch.Tensor,
    keep: torch.Tensor | float | None,
    pooling: str,
    activate: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs and cell states, of the shape `(time, batch, units)`."""
    cells = gates.new_empty((*gates.shape[:2], initial_state.shape[1]))
    outputs = cells if pooling == "f" else torch.empty_like(cells)
    _pool_to(outputs, cells, gates, initial_state, keep, pooling, activate)
    return outputs, cells


def pool_for_inference(
    gates: torch.Tensor,
    initial_state: torch.Tensor,
    keep: torch.Tensor | float | None,
    pooling: str,
    activate: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs and the last cell state: of the others nothing is written."""
    outputs = gates.new_empty((*gates.shape[:2], initial_state.shape[1]))
    last = _pool_to(outputs, None, gates, initial_state, keep, pooling, activate)
    return outputs, last


def _pool_to(
    outputs: torch.Tensor,
    cells: torch.Tensor | None,
    gates: torch.Tensor,
    initial_state: torch.Tensor,
    keep: torch.Tensor | float | None,
    pooling: str,
    activate: bool,
) -> torch.Tensor:
    """Fills `outputs` and `cells`; returns the last cell state."""
    state = _copy(initial_state.to(gates.dtype))
    masked, mask, number = _mask_and_number(keep, outputs)
    kernel = _pool(gates.dtype, pooling, activate, masked, cells is not None)
    cells = outputs if cells is None else cells
    _launch(kernel, gates.contiguous(), mask, number, outputs, cells, state)
    return state


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
    """Gradients by `gates` and by `initial_state`."""
    gates, cells, adjoint = gates.contiguous(), cells.contiguous(), _copy(d_last)
    d_gates = torch.empty_like(gates)
    masked, mask, number = _mask_and_number(keep, cells)
    _launch(
        _pool_gradient(cells.dtype, pooling, activate, masked),
        gates, mask, number, initial_state.contiguous(), cells,
        d_outputs.contiguous(), d_gates, adjoint,
    )  # fmt: skip
    return d_gates, adjoint


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)


def _in_one_order(*tensors: torch.Tensor) -> tuple[bool, list[torch.Tensor]]:
    """Contiguous tensors, and whether they are time-major or batch-major.

    They are what the last one is: no copy is made of those that agree with it.
    """
    last = tensors[-1]
    time_major = last.is_contiguous() or not last.transpose(0, 1).is_contiguous()
    if not time_major:
        tensors = [tensor.transpose(0, 1) for tensor in tensors]
    return time_major, [tensor.contiguous() for tensor in tensors]


def _mask_and_number(
    keep: torch.Tensor | float | None, like: torch.Tensor
) -> tuple[bool, torch.Tensor, np.floating]:
    """Zoneout's factors on updates: whether there are many, these, or the only one."""
    one = _scalar(like.dtype)(1)
    if isinstance(keep, torch.Tensor):
        return True, keep.expand(like.shape).contiguous(), one
    return False, like, one if keep is None else one * keep


def _scalar(dtype: torch.dtype) -> type[np.floating]:
    return np.float64 if dtype == torch.float64 else np.float32


def _launch(kernel: Callable, *arguments: torch.Tensor | np.floating) -> None:
    """Runs a kernel on all lanes; the last argument has the shape of a state."""
    size, (batch, units) = arguments[0].numel(), arguments[-1].shape
    arguments = [_flat(a) if isinstance(a, torch.Tensor) else a for a in arguments]
    parts = min(torch.get_num_threads(), 1 + size // PER_THREAD)
    if batch % parts == 0 or batch >= 4 * parts:
        bounds = [batch * n // parts for n in range(parts + 1)]
        lanes = [(*pair, 0, units) for pair in itertools.pairwise(bounds)]
    else:
        parts = max(1, min(parts, units // 16))
        bounds = [units * n // parts for n in range(parts + 1)]
        lanes = [(0, batch, *pair) for pair in itertools.pairwise(bounds)]
    arguments += batch, units
    remaining, ran_in, errors = iter(lanes), set(), []

    def run_lanes(*_) -> None:
        try:
            ran_in.add(threading.get_ident())
            for lane in remaining:
                kernel(*arguments, *lane)
        except BaseException as error:  # noqa: BLE001 (C, which calls, knows none)
            errors.append(error)

    _in_threads(run_lanes, len(lanes))
    if threading.get_ident() not in ran_in:
        # What a signal's handler raises where C enters a function is printed and lost.
        errors.append(KeyboardInterrupt())
    if errors:
        raise errors[0]


def _in_threads(run: Callable[..., None], count: int) -> None:
    """Calls `run` in this thread and in others: all of PyTorch's, or `count - 1`."""
    # A forked process has none of PyTorch's threads, and they do not end with Python.
    available = os.getpid() == PROCESS and not sys.is_finalizing()
    parallel = _openmp() if count > 1 and available else None
    if parallel:
        # All of them, as PyTorch does: those left out would end, to be started again.
        parallel(TASK(run), None, torch.get_num_threads(), 0)
        return
    others = []
    for _ in range(count - 1):
        try:
            others.append(_threads().submit(run))
        except RuntimeError:  # the interpreter ends, and starts no more threads
            break
    run()
    wait(others)


@functools.cache
def _openmp() -> Callable | None:
    """What compiled C calls for a parallel region, of the OpenMP that PyTorch loads.

    None where no library that is loaded for all has a function of that name.
    """
    if os.name == "nt":
        return None
    parallel = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
    if parallel is not None:
        parallel.argtypes = TASK, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint
        parallel.restype = None
    return parallel


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="keras_qrnn")


if hasattr(os, "register_at_fork"):  # a forked process has none of these threads
    os.register_at_fork(after_in_child=_threads.cache_clear)


def _flat(tensor: torch.Tensor) -> np.ndarray:
    if forward_ad.unpack_dual(tensor).tangent is not None:
        raise NotImplementedError("A QRNN's forward-mode derivatives on PyTorch")
    return tensor.detach().resolve_neg().numpy().reshape(-1)


# The kernels see flat arrays: Numba counts the references of slices, and threads would
# wait for each other's counts.


@functools.cache
def _scan(time_major: bool, reverse: bool) -> Callable:
    @compiled
    def scan(decay, inputs, states, state, batch, units, start, stop, unit, unit_end):
        time, rows = len(decay) // len(state), stop - start
        for n in range(time * rows):
            step, b = (n // rows, n % rows) if time_major else (n % time, n // time)
            t, b = time - 1 - step if reverse else step, start + b
            row = place((t * batch + b if time_major else b * time + t) * units)
            lane = place(b * units)
            for u in range(place(unit), place(unit_end)):
                value = decay[row + u] * state[lane + u] + inputs[row + u]
                state[lane + u] = states[row + u] = value

    return scan


@functools.cache
def _scan_gradient(time_major: bool, reverse: bool) -> Callable:
    @compiled
    def scan_gradient(
        decay, states, gradient, initial, d_decay, d_inputs, adjoint,
        batch, units, start, stop, unit, unit_end,
    ):  # fmt: skip
        time, rows = len(decay) // len(adjoint), stop - start
        stride = batch * units if time_major else units
        for n in range(time * rows):
            step, b = (n // rows, n % rows) if time_major else (n % time, n // time)
            t, b = step if reverse else time - 1 - step, start + b
            at = (t * batch + b if time_major else b * time + t) * units
            row, lane = place(at), place(b * units)
            is_last = step == time - 1
            before = row if is_last else place(at + stride if reverse else at - stride)
            for u in range(place(unit), place(unit_end)):
                total = adjoint[lane + u] + gradient[row + u]
                previous = initial[lane + u] if is_last else states[before + u]
                d_inputs[row + u] = total
                d_decay[row + u] = total * previous
                adjoint[lane + u] = total * decay[row + u]

    return scan_gradient


@functools.cache
def _pool(
    dtype: torch.dtype, pooling: str, activate: bool, masked: bool, keep_cells: bool
) -> Callable:
    sigmoid, tanh, one = _functions(dtype)
    gates_count = len(pooling) + 1

    @compiled
    def pool(
        gates, mask, number, outputs, cells, state,
        batch, units, start, stop, unit, unit_end,
    ):  # fmt: skip
        time, rows = len(cells) // len(state), stop - start
        for n in range(time * rows):
            t, b = n // rows, start + n % rows
            at = (t * batch + b) * units
            row, lane, z_row = place(at), place(b * units), place(gates_count * at)
            f_row, o_row = z_row + place(units), z_row + place(2 * units)
            i_row = z_row + place(3 * units)
            for u in range(place(unit), place(unit_end)):
                z, f = gates[z_row + u], gates[f_row + u]
                if activate:
                    z, f = tanh(z), sigmoid(f)
                factor = one * mask[row + u] if masked else number
                update = factor * (one - f)
                if pooling == "ifo":
                    i = gates[i_row + u]
                    if activate:
                        i = sigmoid(i)
                    cell = (one - update) * state[lane + u] + factor * i * z
                else:
                    cell = (one - update) * state[lane + u] + update * z
                state[lane + u] = cell
                if pooling == "f":
                    outputs[row + u] = cell
                else:
                    if keep_cells:
                        cells[row + u] = cell
                    o = gates[o_row + u]
                    if activate:
                        o = sigmoid(o)
                    outputs[row + u] = o * cell

    return pool


@functools.cache
def _pool_gradient(
    dtype: torch.dtype, pooling: str, activate: bool, masked: bool
) -> Callable:
    sigmoid, tanh, one = _functions(dtype)
    gates_count = len(pooling) + 1

    @compiled
    def pool_gradient(
        gates, mask, number, initial, cells, d_outputs, d_gates, adjoint,
        batch, units, start, stop, unit, unit_end,
    ):  # fmt: skip
        time, rows = len(cells) // len(adjoint), stop - start
        for n in range(time * rows):
            t, b = time - 1 - n // rows, start + n % rows
            at = (t * batch + b) * units
            row, lane, z_row = place(at), place(b * units), place(gates_count * at)
            f_row, o_row = z_row + place(units), z_row + place(2 * units)
            i_row = z_row + place(3 * units)
            before = place(at - batch * units) if t > 0 else row
            for u in range(place(unit), place(unit_end)):
                z, f = gates[z_row + u], gates[f_row + u]
                if activate:
                    z, f = tanh(z), sigmoid(f)
                factor = one * mask[row + u] if masked else number
                update = factor * (one - f)
                previous = cells[before + u] if t > 0 else initial[lane + u]
                total = d_output = d_outputs[row + u]
                if pooling != "f":
                    o = gates[o_row + u]
                    if activate:
                        o = sigmoid(o)
                    total = d_output * o
                    d_o = d_output * cells[row + u]
                    if activate:
                        d_o *= o * (one - o)
                    d_gates[o_row + u] = d_o
                total += adjoint[lane + u]
                if pooling == "ifo":
                    i = gates[i_row + u]
                    if activate:
                        i = sigmoid(i)
                    d_z = total * factor * i
                    d_f = total * factor * previous
                    d_i = total * factor * z
                    if activate:
                        d_i *= i * (one - i)
                    d_gates[i_row + u] = d_i
                else:
                    d_z = total * update
                    d_f = total * factor * (previous - z)
                if activate:
                    d_z *= one - z * z
                    d_f *= f * (one - f)
                d_gates[z_row + u] = d_z
                d_gates[f_row + u] = d_f
                adjoint[lane + u] = total * (one - update)

    return pool_gradient


@functools.cache
def _functions(dtype: torch.dtype) -> tuple[Callable, Callable, np.floating]:
    """Sigmoid, tanh and the number one of a dtype.

    Those of the C library are calls, which no loop of vector instructions may hold.
    """
    scalar = _scalar(dtype)
    integer = np.int64 if scalar is np.float64 else np.int32
    bits, bias = np.finfo(scalar).nmant, np.finfo(scalar).maxexp - 1
    mantissa, bias = integer(bits), integer(bias)
    least, greatest = scalar(bias * -0.69), scalar(bias * 0.69)
    # Adding and taking away 1.5 * 2**bits rounds to an integer.
    rounding, log2_e = scalar(1.5 * 2.0**bits), scalar(1 / math.log(2))
    # ln 2 in two parts, of which the first times any exponent is exact.
    high = scalar(355 / 512)
    low = scalar(math.log(2) - 355 / 512)
    # The series of exp up to a remainder, for |x| <= ln(2) / 2, below the dtype's.
    terms = 14 if scalar is np.float64 else 8
    series = tuple(scalar(1 / math.factorial(k)) for k in reversed(range(terms)))
    zero, one, two = scalar(0), scalar(1), scalar(2)
    near, a0, a1, a2 = scalar(0.0625), scalar(10395), scalar(1260), scalar(21)
    b1, b2 = scalar(4725), scalar(210)

    @njit(inline="always")
    def exp(x):
        inside = least if x < least else x
        inside = greatest if inside > greatest else inside
        n = (inside * log2_e + rounding) - rounding
        r = (inside - n * high) - n * low
        value = zero
        for coefficient in series:
            value = value * r + coefficient
        power = integer((integer(n) + bias) << mantissa).view(scalar)
        return value * power if x == x else x

    @njit(inline="always")
    def sigmoid(x):
        return one / (one + exp(-x))

    @njit(inline="always")
    def tanh(x):
        # Near zero the difference cancels; there, six terms of the continued fraction.
        s = x * x
        fraction = x * (a0 + s * (a1 + s * a2)) / (a0 + s * (b1 + s * (b2 + s)))
        return fraction if s < near else two * sigmoid(two * x) - one

    return sigmoid, tanh, one
