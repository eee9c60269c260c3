"""Numba: the scan and the pooling of PyTorch on a CPU, if Numba is installed.

Each kernel reads and writes every array once. Its innermost loop runs over the units of
one step. The units are independent, so the loop becomes vector instructions. Threads
divide the sequences among them or, if there are few sequences, the units.

All arguments and results are tensors of float32 or float64 on the CPU. Sequences have
shape `(time, batch, units)` and time-major memory. `linear_scan` and its gradient also
take memory of the order `(batch, time, units)`.

The poolings and their gradients are those of `ops/equations.py`. They are written again
here, for single numbers: the functions there compute on whole arrays, and each of their
operations would read and write an array.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numba import njit

from keras_qrnn.ops.equations import GATES
from keras_qrnn.ops.torch import openmp

# One more thread is started for this many elements. Fewer are not worth its start.
PER_THREAD = 16384
# LLVM may contract a product and a sum to one instruction, which changes the rounding.
# It may make no other change to a result.
compiled = functools.partial(
    njit, nogil=True, fastmath={"contract"}, error_model="numpy"
)
# The type of an array's index. It is unsigned: for a signed index Numba would add code
# that counts negative indices from the end.
index_type = np.uintp


def linear_scan(
    decay: torch.Tensor,
    inputs: torch.Tensor,
    initial_state: torch.Tensor,
    reverse: bool,
) -> torch.Tensor:
    """The states, in the shape and memory order of `inputs`."""
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
    """The gradients by `decay` and `inputs`, in the memory order of `states`.

    `gradient` is the gradient by `states`.
    """
    time_major, (decay, gradient, states) = _in_one_order(decay, gradient, states)
    d_decay, d_inputs = torch.empty_like(decay), torch.empty_like(decay)
    initial_state = initial_state.contiguous()
    carried = torch.zeros_like(initial_state)
    _launch(
        _scan_gradient(time_major, reverse),
        decay, states, gradient, initial_state, d_decay, d_inputs, carried,
    )  # fmt: skip
    if not time_major:
        d_decay, d_inputs = d_decay.transpose(0, 1), d_inputs.transpose(0, 1)
    return d_decay, d_inputs


def pool(
    gates: torch.Tensor,
    initial_state: torch.Tensor,
    update_scale: torch.Tensor | float | None,
    pooling: str,
    activate: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The outputs and the cell states of all steps, each `(time, batch, units)`."""
    cells = gates.new_empty((*gates.shape[:2], initial_state.shape[1]))
    outputs = cells if pooling == "f" else torch.empty_like(cells)
    masked, mask, number = _mask_and_number(update_scale, outputs)
    _launch(
        _pool(gates.dtype, pooling, activate, masked, keep_cells=True),
        gates.contiguous(), mask, number, outputs, cells,
        _copy(initial_state.to(gates.dtype)),
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
    state = _copy(initial_state.to(gates.dtype))
    outputs = gates.new_empty((*gates.shape[:2], initial_state.shape[1]))
    masked, mask, number = _mask_and_number(update_scale, outputs)
    _launch(
        _pool(gates.dtype, pooling, activate, masked, keep_cells=False),
        gates.contiguous(), mask, number, outputs, outputs, state,
    )  # fmt: skip
    return outputs, state


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
    """The gradients by `gates` and by `initial_state`, of their shapes."""
    gates, cells, carried = gates.contiguous(), cells.contiguous(), _copy(d_last)
    d_gates = torch.empty_like(gates)
    masked, mask, number = _mask_and_number(update_scale, cells)
    _launch(
        _pool_gradient(cells.dtype, pooling, activate, masked),
        gates, mask, number, initial_state.contiguous(), cells,
        d_outputs.contiguous(), d_gates, carried,
    )  # fmt: skip
    return d_gates, carried


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)


def _in_one_order(*sequences: torch.Tensor) -> tuple[bool, list[torch.Tensor]]:
    """Brings tensors of shape `(time, batch, units)` into one memory order.

    The last tensor decides the order. Tensors in another order are copied.

    Returns:
        Whether the memory is time-major. The tensors, contiguous, of shape
        `(time, batch, units)` if it is, else of shape `(batch, time, units)`.
    """
    last = sequences[-1]
    time_major = last.is_contiguous() or not last.transpose(0, 1).is_contiguous()
    tensors = [s if time_major else s.transpose(0, 1) for s in sequences]
    return time_major, [tensor.contiguous() for tensor in tensors]


def _mask_and_number(
    update_scale: torch.Tensor | float | None, like: torch.Tensor
) -> tuple[bool, torch.Tensor, np.floating]:
    """`update_scale` in the form that a kernel takes: a tensor or a number.

    Returns:
        Whether `update_scale` is a tensor. Then the tensor, expanded to the shape of
        `like`, and 1. Otherwise `like`, which the kernel does not read, and the number.
    """
    one = _scalar(like.dtype)(1)
    if isinstance(update_scale, torch.Tensor):
        return True, update_scale.expand(like.shape).contiguous(), one
    return False, like, one if update_scale is None else one * update_scale


def _scalar(dtype: torch.dtype) -> type[np.floating]:
    return np.float64 if dtype == torch.float64 else np.float32


def _launch(kernel: Callable, *arguments: Any) -> None:
    """Runs a kernel on all lanes. A lane is one unit of one sequence.

    Each thread calls the kernel with the arguments, then `batch` and `units`, then the
    bounds of its part: sequences `start` to `stop`, units `unit_start` to `unit_stop`.

    Args:
        kernel: a compiled function.
        arguments: contiguous tensors and numbers. The size of the first decides the
            number of threads. The last has shape `(batch, units)`.
    """
    size, (batch, units) = arguments[0].numel(), arguments[-1].shape
    if not batch * units:
        return
    given = [_flat(a) if isinstance(a, torch.Tensor) else a for a in arguments]
    given += [batch, units]
    parts = min(torch.get_num_threads(), 1 + size // PER_THREAD)
    if batch % parts == 0 or batch >= 4 * parts:
        bounds = [batch * n // parts for n in range(parts + 1)]
        lanes = [(*pair, 0, units) for pair in itertools.pairwise(bounds)]
    else:
        parts = max(1, min(parts, units // 16))
        bounds = [units * n // parts for n in range(parts + 1)]
        lanes = [(0, batch, *pair) for pair in itertools.pairwise(bounds)]
    if parts == 1:
        kernel(*given, *lanes[0])
    else:
        openmp.share(functools.partial(kernel, *given), lanes)


def _flat(tensor: torch.Tensor) -> np.ndarray:
    return tensor.numpy(force=True).reshape(-1)


# The kernels take flat arrays and make no slices. Numba counts the references to each
# slice, and threads would wait for each other's counts.


@functools.cache
def _scan(time_major: bool, reverse: bool) -> Callable:
    @compiled
    def scan(
        decay, inputs, states, state, batch, units, start, stop, unit_start, unit_stop
    ):
        time, rows = len(decay) // len(state), stop - start
        for n in range(time * rows):
            step, b = (n // rows, n % rows) if time_major else (n % time, n // time)
            t, b = time - 1 - step if reverse else step, start + b
            base = index_type((t * batch + b if time_major else b * time + t) * units)
            lane = index_type(b * units)
            for unit in range(index_type(unit_start), index_type(unit_stop)):
                value = decay[base + unit] * state[lane + unit] + inputs[base + unit]
                state[lane + unit] = states[base + unit] = value

    return scan


@functools.cache
def _scan_gradient(time_major: bool, reverse: bool) -> Callable:
    @compiled
    def scan_gradient(
        decay, states, gradient, initial, d_decay, d_inputs, carried,
        batch, units, start, stop, unit_start, unit_stop,
    ):  # fmt: skip
        time, rows = len(decay) // len(carried), stop - start
        stride = batch * units if time_major else units
        for n in range(time * rows):
            step, b = (n // rows, n % rows) if time_major else (n % time, n // time)
            t, b = step if reverse else time - 1 - step, start + b
            at = (t * batch + b if time_major else b * time + t) * units
            base, lane = index_type(at), index_type(b * units)
            is_last = step == time - 1
            previous_base = (
                base if is_last else index_type(at + stride if reverse else at - stride)
            )
            for unit in range(index_type(unit_start), index_type(unit_stop)):
                adjoint = carried[lane + unit] + gradient[base + unit]
                previous = (
                    initial[lane + unit] if is_last else states[previous_base + unit]
                )
                d_inputs[base + unit] = adjoint
                d_decay[base + unit] = adjoint * previous
                carried[lane + unit] = adjoint * decay[base + unit]

    return scan_gradient


@functools.cache
def _pool(
    dtype: torch.dtype, pooling: str, activate: bool, masked: bool, keep_cells: bool
) -> Callable:
    sigmoid, tanh, one = _functions(dtype)
    gates_count = len(GATES[pooling])

    @compiled
    def pool(
        gates, mask, number, outputs, cells, state,
        batch, units, start, stop, unit_start, unit_stop,
    ):  # fmt: skip
        time, rows = len(cells) // len(state), stop - start
        for n in range(time * rows):
            t, b = n // rows, start + n % rows
            at = (t * batch + b) * units
            base, lane = index_type(at), index_type(b * units)
            z_base = index_type(gates_count * at)
            f_base, o_base = z_base + index_type(units), z_base + index_type(2 * units)
            i_base = z_base + index_type(3 * units)
            for unit in range(index_type(unit_start), index_type(unit_stop)):
                z, f = gates[z_base + unit], gates[f_base + unit]
                if activate:
                    z, update_gate = tanh(z), sigmoid(-f)
                else:
                    update_gate = one - f
                scale = one * mask[base + unit] if masked else number
                update = scale * update_gate
                if pooling == "ifo":
                    i = gates[i_base + unit]
                    if activate:
                        i = sigmoid(i)
                    cell = (one - update) * state[lane + unit] + scale * i * z
                else:
                    cell = (one - update) * state[lane + unit] + update * z
                state[lane + unit] = cell
                if pooling == "f":
                    outputs[base + unit] = cell
                else:
                    if keep_cells:
                        cells[base + unit] = cell
                    o = gates[o_base + unit]
                    if activate:
                        o = sigmoid(o)
                    outputs[base + unit] = o * cell

    return pool


@functools.cache
def _pool_gradient(
    dtype: torch.dtype, pooling: str, activate: bool, masked: bool
) -> Callable:
    sigmoid, tanh, one = _functions(dtype)
    gates_count = len(GATES[pooling])

    @compiled
    def pool_gradient(
        gates, mask, number, initial, cells, d_outputs, d_gates, carried,
        batch, units, start, stop, unit_start, unit_stop,
    ):  # fmt: skip
        time, rows = len(cells) // len(carried), stop - start
        for n in range(time * rows):
            t, b = time - 1 - n // rows, start + n % rows
            at = (t * batch + b) * units
            base, lane = index_type(at), index_type(b * units)
            z_base = index_type(gates_count * at)
            f_base, o_base = z_base + index_type(units), z_base + index_type(2 * units)
            i_base = z_base + index_type(3 * units)
            previous_base = index_type(at - batch * units) if t > 0 else base
            for unit in range(index_type(unit_start), index_type(unit_stop)):
                z, f = gates[z_base + unit], gates[f_base + unit]
                if activate:
                    z, update_gate = tanh(z), sigmoid(-f)
                else:
                    update_gate = one - f
                scale = one * mask[base + unit] if masked else number
                update = scale * update_gate
                previous = (
                    cells[previous_base + unit] if t > 0 else initial[lane + unit]
                )
                adjoint = d_output = d_outputs[base + unit]
                if pooling != "f":
                    o = gates[o_base + unit]
                    if activate:
                        o = sigmoid(o)
                    adjoint = d_output * o
                    d_o = d_output * cells[base + unit]
                    if activate:
                        d_o *= o * (one - o)
                    d_gates[o_base + unit] = d_o
                adjoint += carried[lane + unit]
                if pooling == "ifo":
                    i = gates[i_base + unit]
                    if activate:
                        i = sigmoid(i)
                    d_z = adjoint * scale * i
                    d_f = adjoint * scale * previous
                    d_i = adjoint * scale * z
                    if activate:
                        d_i *= i * (one - i)
                    d_gates[i_base + unit] = d_i
                else:
                    d_z = adjoint * update
                    d_f = adjoint * scale * (previous - z)
                if activate:
                    d_z *= one - z * z
                    d_f *= update_gate * (one - update_gate)
                d_gates[z_base + unit] = d_z
                d_gates[f_base + unit] = d_f
                carried[lane + unit] = adjoint * (one - update)

    return pool_gradient


@functools.cache
def _functions(dtype: torch.dtype) -> tuple[Callable, Callable, np.floating]:
    """Sigmoid, tanh and the number 1 of a dtype.

    They use no exp or tanh of the C library. Those are function calls, and a loop with
    a call in it does not become vector instructions.
    """
    scalar = _scalar(dtype)
    integer = np.int64 if scalar is np.float64 else np.int32
    bits = np.finfo(scalar).nmant
    mantissa, bias = integer(bits), integer(np.finfo(scalar).maxexp - 1)
    least, greatest = scalar(bias * -0.69), scalar(bias * 0.69)
    # Adding 1.5 * 2**bits and subtracting it again rounds to an integer.
    rounding, log2_e = scalar(1.5 * 2.0**bits), scalar(1 / math.log(2))
    # ln 2 is a sum of two parts. The first part times any exponent is exact.
    high = scalar(355 / 512)
    low = scalar(math.log(2) - 355 / 512)
    # The series of exp. For |x| <= ln(2) / 2 the omitted terms are below the rounding.
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
        # tanh is a difference of sigmoids. Near zero the two cancel: there six terms
        # of a continued fraction are used.
        s = x * x
        fraction = x * (a0 + s * (a1 + s * a2)) / (a0 + s * (b1 + s * (b2 + s)))
        return fraction if s < near else two * sigmoid(two * x) - one

    return sigmoid, tanh, one
