"""The scan, the pooling and the convolution by operations that PyTorch can record.

Each operation makes a new tensor and can be differentiated, batched, traced and
exported. This file runs while something traces, exports, records or transforms. No
function reads a value or a batch size. If the number of steps is fixed, the scan may
read it. If not, the scan uses a fixed number of doubling rounds.

Time is axis 1, as in the contract (`ops/backend.py`).
"""

from collections.abc import Callable

import torch
from torch.nn import functional

from keras_qrnn.ops import equations
from keras_qrnn.ops.blocks import REACH, ROUNDS
from keras_qrnn.ops.equations import GATES, Gates
from keras_qrnn.ops.torch.shared import accumulator, shifted

# Up to this many steps are computed one by one. More steps are cut into blocks.
FEW = 32


def linear_scan(
    decay: torch.Tensor,
    inputs: torch.Tensor,
    initial_state: torch.Tensor,
    reverse: bool,
) -> torch.Tensor:
    """The states `(batch, time, units)`, in the dtype of `inputs`."""
    dtype = accumulator(inputs.dtype)
    decay, states = decay.to(dtype), inputs.to(dtype)
    if reverse:
        decay, states = decay.flip(1), states.flip(1)
    states = _scan(decay, states, initial_state.to(dtype))
    return (states.flip(1) if reverse else states).to(inputs.dtype)


def _scan(
    decay: torch.Tensor, inputs: torch.Tensor, initial: torch.Tensor
) -> torch.Tensor:
    time = inputs.shape[1]
    if may_change(time):
        return _doubling(decay, inputs, initial)
    size = time
    if time > FEW:
        size = 16 if time >= 256 else 8
    blocks = -(-time // size)
    missing = blocks * size - time
    # (batch, blocks, steps, units), the last block filled up with zeros. The recorded
    # view refuses a sequence of another length.
    batch, _, units = inputs.shape
    decay, inputs = (
        functional.pad(x, (0, 0, 0, missing)).reshape(batch, blocks, size, units)
        for x in (decay, inputs)
    )
    state = initial.unsqueeze(1)  # of each block, `(batch, blocks, units)`
    if blocks > 1:  # see `ops/blocks.py`
        products, ends = decay[:, :, 0], inputs[:, :, 0]
        for n in range(1, size):
            ends = torch.addcmul(inputs[:, :, n], decay[:, :, n], ends)
            products = products * decay[:, :, n]
        state = shifted(_scan(products, ends, initial), initial, False, axis=1)
    steps = []
    for d, x in zip(decay.unbind(2), inputs.unbind(2), strict=True):
        state = torch.addcmul(x, d, state)
        steps.append(state)
    states = torch.stack(steps, 2).reshape(batch, blocks * size, units)
    return states.narrow(1, 0, time)


def may_change(time: int | torch.SymInt) -> bool:
    """Whether the recorded program may get sequences of another length."""
    if torch.compiler.is_dynamo_compiling():  # it shows a symbol as a number
        return torch.compiler.is_exporting()
    return torch.jit.is_tracing() or not isinstance(time, int)


def _doubling(
    decay: torch.Tensor, inputs: torch.Tensor, initial: torch.Tensor
) -> torch.Tensor:
    """The states of a sequence of up to `REACH - 1` steps. Later states are NaN.

    See `REACH` in `ops/blocks.py`.
    """
    product = torch.cat([torch.zeros_like(initial).unsqueeze(1), decay], 1)
    states = torch.cat([initial.unsqueeze(1), inputs], 1)
    step = torch.arange(states.shape[1], device=states.device)
    for n in range(ROUNDS):
        earlier = (step - 2**n).clamp(min=0)
        states = torch.addcmul(states, product, states.index_select(1, earlier))
        if n < ROUNDS - 1:
            product = product * product.index_select(1, earlier)
    out_of_reach = (step >= REACH).unsqueeze(1)
    return states.masked_fill(out_of_reach, torch.nan)[:, 1:]


def activated_gates(gates: torch.Tensor, pooling: str, activate: bool) -> Gates:
    """Splits packed gates `(..., gates * units)`. In the accumulator's dtype."""
    packed = gates.to(accumulator(gates.dtype))
    z, f, *others = packed.tensor_split(len(GATES[pooling]), -1)
    if not activate:
        return Gates(z, 1 - f, *others)
    return Gates(z.tanh(), (-f).sigmoid(), *[gate.sigmoid() for gate in others])


def pool(
    gates: torch.Tensor,
    initial_state: torch.Tensor,
    update_scale: torch.Tensor | float | None,
    pooling: str,
    activate: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs `(batch, time, units)` and the last cell state `(batch, units)`."""
    activated = activated_gates(gates, pooling, activate)
    scale = _cast(update_scale, activated.z.dtype)
    decay, inputs = equations.decay_and_inputs(activated, scale)
    cells = linear_scan(decay, inputs, initial_state, False)
    outputs = equations.outputs_of(activated, cells)
    return outputs.to(gates.dtype), cells[:, -1]


def pool_gradients(
    gates: torch.Tensor,
    initial_state: torch.Tensor,
    update_scale: torch.Tensor | float | None,
    pooling: str,
    activate: bool,
    d_outputs: torch.Tensor,
    d_last: torch.Tensor,
    scan: Callable[..., torch.Tensor] = linear_scan,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients by `gates` and `initial_state`, which can be differentiated again.

    Args:
        gates, initial_state, update_scale, pooling, activate: as in `pool`.
        d_outputs: gradient by the outputs, `(batch, time, units)`.
        d_last: gradient by the last cell state, `(batch, units)`.
        scan: a differentiable `linear_scan`.
    """
    activated = activated_gates(gates, pooling, activate)
    scale = _cast(update_scale, activated.z.dtype)
    decay, inputs = equations.decay_and_inputs(activated, scale)
    # The cell states are computed again: the kept ones cannot be differentiated.
    cells = scan(decay, inputs, initial_state, False)
    previous = shifted(cells, initial_state.to(cells.dtype), False, axis=1)

    d_outputs, d_last = d_outputs.to(cells.dtype), d_last.to(cells.dtype)
    d_cells = d_outputs if activated.o is None else d_outputs * activated.o
    at_the_end = d_cells[:, -1] + d_last
    d_cells = torch.cat([d_cells[:, :-1], at_the_end.unsqueeze(1)], 1)
    # The adjoint is a scan backwards: a[t] = d_cells[t] + decay[t + 1] * a[t + 1].
    zeros = torch.zeros_like(at_the_end)
    following = shifted(decay, torch.zeros_like(decay[:, 0]), True, axis=1)
    adjoint = scan(following, d_cells, zeros, True)

    d_gates = equations.gate_gradients(
        activated, scale, cells, previous, d_outputs, adjoint
    )
    if activate:
        d_gates = equations.logit_gradients(activated, d_gates)
    d_initial = (decay[:, 0] * adjoint[:, 0]).to(initial_state.dtype)
    return torch.cat(d_gates, -1).to(gates.dtype), d_initial


def _cast(
    update_scale: torch.Tensor | float | None, dtype: torch.dtype
) -> torch.Tensor | float | None:
    if isinstance(update_scale, torch.Tensor):
        return update_scale.to(dtype)
    return update_scale


def causal_conv(
    inputs: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """The convolution `(batch, time, channels)` as one matrix product for each tap.

    `inputs` has shape `(batch, window - 1 + time, features)`, `bias` has shape
    `(channels,)` or `(batch, channels)`.
    """
    window = kernel.shape[0]
    outputs = inputs[:, window - 1 :] @ kernel[window - 1]
    for j in range(window - 1):
        outputs = outputs + inputs[:, j : j + 1 - window] @ kernel[j]
    if bias is None:
        return outputs
    return outputs + (bias if bias.dim() == 1 else bias.unsqueeze(1))


def causal_conv_gradients(
    inputs: torch.Tensor, kernel: torch.Tensor, gradient: torch.Tensor, bias_axes: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients by inputs, kernel and bias, from the `gradient` by the result.

    `bias_axes` is the number of axes of the bias, 1 or 2.
    """
    window = kernel.shape[0]
    d_inputs, d_kernel = torch.zeros_like(inputs), []
    for j in range(window):
        d_seen = functional.pad(gradient @ kernel[j].T, (0, 0, j, window - 1 - j))
        d_inputs = d_inputs + d_seen
        seen = inputs[:, j : j + gradient.shape[1]]
        d_kernel.append(torch.tensordot(seen, gradient, ((0, 1), (0, 1))))
    d_bias = gradient.sum((0, 1) if bias_axes == 1 else 1)
    return d_inputs, torch.stack(d_kernel), d_bias


def valid_first(mask: torch.Tensor) -> torch.Tensor:
    """The indices of the valid steps of each sequence in their order, `(batch, time)`.

    For a known number of steps, as LiteRT has it. LiteRT has no sort. For the search
    see `ops/jax_onnx.py`.
    """
    time = mask.shape[1]
    step = torch.arange(time, device=mask.device)
    count = mask.long().cumsum(1)
    found = torch.zeros_like(count)
    for k in reversed(range(time.bit_length())):
        further = found + 2**k
        at = further.clamp(max=time) - 1
        is_before = (further <= time) & (count.gather(1, at) <= step)
        found = torch.where(is_before, further, found)
    return found
