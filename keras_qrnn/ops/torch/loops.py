"""The kernels as loops of PyTorch's operations in place, one or two for each step.

They run where neither Triton nor Numba can run: on a CPU without Numba, in half
precision on a CPU, on other devices. Sequences have shape `(time, batch, units)` and
time-major memory: a step is one contiguous slice.

The poolings and their gradients are those of `ops/equations.py`. They are written again
here, in place: the functions there make a new array with each operation, and new memory
costs as much as the arithmetic on it.
"""

from collections.abc import Callable

import torch

from keras_qrnn.ops.blocks import is_cut_in_blocks, piece_length
from keras_qrnn.ops.equations import GATES
from keras_qrnn.ops.torch.shared import accumulator, shifted

# The steps of a block in a long scan. Blocks of a short scan have half as many. See
# `ops/blocks.py`.
BLOCK = 16
# A piece has this many steps, those of all sequences counted together: see
# `ops/blocks.py`.
PIECE_STEPS = 2048


def linear_scan(
    decay: torch.Tensor,
    inputs: torch.Tensor,
    initial_state: torch.Tensor,
    reverse: bool,
) -> torch.Tensor:
    """The states, of the shape and in the memory order of `inputs`."""
    states = inputs.clone()
    _scan_(decay, states, initial_state, reverse)
    return states


def scan_gradients(
    decay: torch.Tensor,
    initial_state: torch.Tensor,
    states: torch.Tensor,
    gradient: torch.Tensor,
    reverse: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients by decay and inputs; `gradient` is the gradient by `states`."""
    d_inputs, d_decay = gradient.clone(), torch.empty_like(gradient)
    _adjoint_(decay, d_inputs, reverse)
    first, earlier, later = 0, slice(0, -1), slice(1, None)
    if reverse:
        first, earlier, later = -1, later, earlier
    torch.mul(d_inputs[later], states[earlier], out=d_decay[later])
    torch.mul(d_inputs[first], initial_state, out=d_decay[first])
    return d_decay, d_inputs


def pool(
    gates: torch.Tensor,
    initial_state: torch.Tensor,
    update_scale: torch.Tensor | float | None,
    pooling: str,
    activate: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The outputs and the cell states of all steps, each `(time, batch, units)`.

    All other arrays live for one piece of time only.
    """
    cells = initial_state.new_empty((*gates.shape[:2], initial_state.shape[1]))
    outputs, state = cells, initial_state
    if pooling != "f" or gates.dtype != cells.dtype:
        outputs = torch.empty_like(cells, dtype=gates.dtype)
    for at in pieces(gates.shape[0], gates.shape[1], gates.is_cpu):
        z, u, o, i = _activated_gates(gates[at], pooling, activate, z_in=cells[at])
        _cells_(z, u, i, scale_at(update_scale, at), state)
        state = z[-1]
        if outputs is not cells:
            outputs[at] = cells[at] if o is None else o.mul_(cells[at])
    return outputs, cells


def pool_for_inference(
    gates: torch.Tensor,
    initial_state: torch.Tensor,
    update_scale: torch.Tensor | float | None,
    pooling: str,
    activate: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The outputs `(time, batch, units)` and the last cell state `(batch, units)`.

    It computes in the memory of `gates`, unless `gates` has half precision. On a CPU a
    new page of memory costs more than the arithmetic on it.
    """
    dtype = torch.promote_types(gates.dtype, torch.float32)
    if gates.dtype != dtype:
        state = initial_state.to(dtype)
        outputs, cells = pool(gates, state, update_scale, pooling, activate)
        return outputs, cells[-1].clone()
    # `u` holds f, or its logit, until it is turned into 1 - f.
    z, u, *rest = gates.tensor_split(len(GATES[pooling]), dim=-1)
    if activate:
        z.tanh_()
        u.neg_()
        gates[..., z.shape[-1] :].sigmoid_()
    else:
        _one_minus_(u)
    i = rest[1] if pooling == "ifo" else None
    _cells_(z, u, i, update_scale, initial_state.to(dtype))
    # Neither result may be a view of `gates`, which would live as long.
    outputs = z.contiguous() if pooling == "f" else rest[0] * z
    return outputs, z[-1].clone()


def _cells_(
    z: torch.Tensor,
    u: torch.Tensor,
    i: torch.Tensor | None,
    scale: torch.Tensor | float | None,
    initial: torch.Tensor,
) -> None:
    """Turns `z` into the cell states, in place. It also writes over `u`.

    Under f- and fo-pooling a cell state lies between the state before and z. `lerp`
    computes it from `z` and the update. So neither the decay nor the inputs of the scan
    are computed, which would be two more passes over memory.
    """
    update = _scaled_(u, scale)
    if i is None and not is_cut_in_blocks(len(z), z[:1].numel()):
        state = initial
        for update_t, z_t in _in_order(update, z, 0, reverse=False):
            state = torch.lerp(state, z_t, update_t, out=z_t)
        return
    if i is None:
        z.mul_(update)
    else:
        _scaled_(z.mul_(i), scale)
    _scan_(_one_minus_(update), z, initial, reverse=False)


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
    """The gradients by `gates` and by `initial_state`, of their shapes and dtypes.

    The first has time-major memory, which the convolution's gradient needs.
    """
    d_gates = torch.empty(gates.shape, dtype=gates.dtype, device=gates.device)
    d_state = d_last
    for at in reversed(pieces(gates.shape[0], gates.shape[1], gates.is_cpu)):
        if at.start:
            previous = cells[at.start - 1 : at.stop - 1]
        else:
            previous = shifted(cells[at], initial_state, reverse=False)
        d_state = _pool_piece_gradient_(
            d_gates[at], gates[at], previous, cells[at], scale_at(update_scale, at),
            pooling, activate, d_outputs[at], d_state,
        )  # fmt: skip
    return d_gates, d_state


def _pool_piece_gradient_(
    d_gates: torch.Tensor,
    gates: torch.Tensor,
    previous: torch.Tensor,
    cells: torch.Tensor,
    scale: torch.Tensor | float | None,
    pooling: str,
    activate: bool,
    d_outputs: torch.Tensor,
    d_last: torch.Tensor,
) -> torch.Tensor:
    """Writes `d_gates` and returns the gradient by the state before the piece.

    It is `gate_gradients` and `logit_gradients` of `ops/equations.py`, in place.
    """
    z, u, o, i = _activated_gates(gates, pooling, activate)
    d_outputs = d_outputs.to(z.dtype)
    update = u if scale is None else u * scale
    decay = 1 - update

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
    d_z, d_f, *d_rest = d_gates.tensor_split(len(GATES[pooling]), dim=-1)
    d_initial = decay[0] * adjoint[0]
    if o is not None:
        _write_logit_gradient_(d_rest[0], cells * d_outputs, o, of_sigmoid)
    if i is None:
        d_forget = _scaled_((previous - z).mul_(adjoint), scale)
        d_candidate = adjoint * update
    else:
        adjoint = _scaled_(adjoint, scale)
        d_forget = previous * adjoint
        d_candidate = adjoint * i
        _write_logit_gradient_(d_rest[1], adjoint.mul_(z), i, of_sigmoid)
    # Of f = 1 - u and u the derivatives of the sigmoid are the same, u (1 - u).
    _write_logit_gradient_(d_f, d_forget, u, of_sigmoid)
    _write_logit_gradient_(d_z, d_candidate, z, of_tanh)
    return d_initial


def _write_logit_gradient_(
    d_logit: torch.Tensor,
    gradient: torch.Tensor,
    gate: torch.Tensor,
    backward: Callable | None,
) -> None:
    """Writes the gradient by a logit from the `gradient` by its activated gate.

    `backward` is the gradient of the activation. None without an activation: then the
    two gradients are the same.
    """
    if backward is not None and d_logit.dtype == gradient.dtype:
        backward(gradient, gate, grad_input=d_logit)
    else:  # in full precision until it is stored
        d_logit.copy_(gradient if backward is None else backward(gradient, gate))


def _activated_gates(
    gates: torch.Tensor,
    pooling: str,
    activate: bool,
    z_in: torch.Tensor | None = None,
) -> tuple:
    """New arrays z, u = 1 - f, o, i in the accumulator's dtype, or None.

    z is written to the memory of `z_in`, if it is given.
    """
    dtype = accumulator(gates.dtype)
    z, *others = gates.tensor_split(len(GATES[pooling]), dim=-1)

    def fresh(gate: torch.Tensor) -> torch.Tensor:
        return gate.to(dtype, copy=True, memory_format=torch.contiguous_format)

    z = fresh(z) if z_in is None else z_in.copy_(z)
    others = [fresh(gate) for gate in others]
    if activate:
        z.tanh_()
        others[0].neg_()
        for gate in others:
            gate.sigmoid_()
    else:
        _one_minus_(others[0])
    return z, *others, *[None] * (3 - len(others))


def _one_minus_(x: torch.Tensor) -> torch.Tensor:
    return torch.sub(x.new_ones(()), x, out=x)


def _scaled_(x: torch.Tensor, scale: torch.Tensor | float | None) -> torch.Tensor:
    return x if scale is None else x.mul_(scale)


def scale_at(
    update_scale: torch.Tensor | float | None, at: slice | tuple[slice, slice]
) -> torch.Tensor | float | None:
    """The part of `update_scale` that belongs to a piece of time."""
    return update_scale[at] if isinstance(update_scale, torch.Tensor) else update_scale


def pieces(time: int, batch: int, is_cpu: bool) -> list[slice]:
    """Slices of time, one for each piece: see `ops/blocks.py`. One slice on a GPU."""
    cut = is_cpu and not torch.compiler.is_compiling()
    length = piece_length(time, batch, PIECE_STEPS) if cut else None
    return slices(time, time if length is None else length)


def slices(count: int, length: int) -> list[slice]:
    """Slices of `length` that cover `range(count)`. The last may be shorter."""
    return [slice(at, min(at + length, count)) for at in range(0, count, length)]


def _adjoint_(decay: torch.Tensor, gradient: torch.Tensor, reverse: bool) -> None:
    """Turns the gradient by the states into the gradient by the inputs, in place.

    `a[t] = gradient[t] + decay[t + 1] * a[t + 1]`: a scan in the other direction.
    """
    if reverse:
        _scan_(decay[:-1], gradient[1:], gradient[0], reverse=False)
    else:
        _scan_(decay[1:], gradient[:-1], gradient[-1], reverse=True)


def _scan_(
    decay: torch.Tensor, inputs: torch.Tensor, initial: torch.Tensor, reverse: bool
) -> None:
    """Turns `inputs` into the states, in place."""
    time = inputs.shape[0]
    if not is_cut_in_blocks(time, inputs[:1].numel()):
        _scan_steps_(decay, inputs, initial, 0, reverse)
        return
    block = BLOCK if time >= BLOCK**2 else BLOCK // 2
    blocks, rest = divmod(time, block)
    at = slice(rest, None) if reverse else slice(0, time - rest)
    # (blocks, steps, batch, units): a slice of all blocks is a step of each.
    d, x = (tensor[at].unflatten(0, (blocks, block)) for tensor in (decay, inputs))
    products, ends = d.prod(1), torch.zeros_like(x[:, 0])
    for d_t, x_t in _in_order(d, x, 1, reverse):
        torch.addcmul(x_t, d_t, ends, out=ends)
    _scan_(products, ends, initial, reverse)
    _scan_steps_(d, x, shifted(ends, initial, reverse), 1, reverse)
    if rest:  # the steps left over, before or after the blocks
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
