"""PyTorch: the functions of the contract in `ops/backend.py`.

The scan and the poolings have two implementations:

- `recorded.py` runs while something traces, exports, batches or transforms: its
  operations allow all of this.
- Otherwise a set of kernels runs, with a gradient by hand (`scan.py`, `pooling.py`):
  `triton.py` on a GPU, `numba.py` on a CPU if Numba is installed, `loops.py` everywhere
  else. In code that `torch.compile` compiles, `custom_ops.py` calls them.

`kernels_for` in `dispatch.py` decides. `convolution.py` has the convolution and its
gradient, by matrix products.

Memory is time-major: a step is one contiguous slice. Arguments and results are
`(batch, time, ...)` views of it. So a stack of layers transposes memory only at its two
ends. `linear_scan` alone keeps the memory order of its arguments.
"""

import torch

from keras_qrnn.ops import equations
from keras_qrnn.ops.torch import recorded
from keras_qrnn.ops.torch.convolution import (
    autocast,
    causal_conv,
    convolve,
    is_autocast,
)
from keras_qrnn.ops.torch.cross_entropy import cross_entropy
from keras_qrnn.ops.torch.dispatch import is_recorded
from keras_qrnn.ops.torch.loops import pieces, scale_at
from keras_qrnn.ops.torch.pooling import pool
from keras_qrnn.ops.torch.scan import linear_scan

# On a CPU, one step of up to this many sequences is faster as one matrix product and a
# few plain operations.
FEW_SEQUENCES = 64

__all__ = ["causal_conv", "conv_pool", "cross_entropy", "linear_scan", "pool"]


def conv_pool(
    inputs: torch.Tensor,
    kernel: torch.Tensor,
    bias: torch.Tensor | None,
    initial_state: torch.Tensor,
    update_scale: torch.Tensor | float | None,
    pooling: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    if is_autocast(inputs):
        with autocast(inputs, kernel, bias) as arguments:
            outputs, last = conv_pool(*arguments, initial_state, update_scale, pooling)
            return outputs.to(inputs.dtype), last
    if is_recorded(inputs, kernel):
        gates = recorded.causal_conv(inputs, kernel, bias)
        return recorded.pool(gates, initial_state, update_scale, pooling, activate=True)
    window, units = kernel.shape[0], initial_state.shape[1]
    batch, time = inputs.shape[0], inputs.shape[1] - window + 1
    # In half precision a step would be rounded in other places than in a sequence.
    exact = inputs.dtype in (torch.float32, torch.float64)
    if time == 1 and batch <= FEW_SEQUENCES and inputs.is_cpu and exact:
        return _one_step(inputs, kernel, bias, initial_state, update_scale, pooling)
    # A gradient needs the gates of all steps. Without one they exist for a piece of
    # time only.
    cuts = None if torch.is_grad_enabled() else pieces(time, batch, inputs.is_cpu)
    if cuts is None or len(cuts) == 1:
        gates = convolve(inputs, kernel, bias)
        return pool(gates, initial_state, update_scale, pooling, activate=True)
    outputs = inputs.new_empty((time, batch, units)).transpose(0, 1)
    state = initial_state
    for at in cuts:
        seen = slice(at.start, at.stop + window - 1)
        gates = convolve(inputs[:, seen], kernel, bias)
        scale = scale_at(update_scale, (slice(None), at))
        outputs[:, at], state = pool(gates, state, scale, pooling, activate=True)
    return outputs, state


def _one_step(
    inputs: torch.Tensor,
    kernel: torch.Tensor,
    bias: torch.Tensor | None,
    initial_state: torch.Tensor,
    update_scale: torch.Tensor | float | None,
    pooling: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`conv_pool` on one step: no loop, and the gradient is PyTorch's own."""
    seen, weights = inputs.flatten(1), kernel.flatten(0, 1)
    gates = seen @ weights if bias is None else torch.addmm(bias, seen, weights)
    activated = recorded.activated_gates(gates, pooling, activate=True)
    if isinstance(update_scale, torch.Tensor):
        update_scale = update_scale[:, 0].to(activated.z.dtype)
    state = initial_state.to(activated.z.dtype)
    outputs, cell = equations.one_step(activated, state, update_scale)
    if outputs is cell:  # the two may share no memory
        outputs = cell.clone()
    return outputs.to(gates.dtype).unsqueeze(1), cell
