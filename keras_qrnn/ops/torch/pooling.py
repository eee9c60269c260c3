"""The poolings with their gradient by hand: an autograd function that calls kernels.

The recurrence itself is `pool` of a set of kernels, its gradient `pool_gradients`: see
`loops.py`.
"""

from typing import Any

import torch
from torch.autograd import Function

from keras_qrnn.ops.torch import recorded
from keras_qrnn.ops.torch.dispatch import kernels_for, unrecorded_kernels_for
from keras_qrnn.ops.torch.scan import linear_scan
from keras_qrnn.ops.torch.shared import accumulator


def pool(
    gates: torch.Tensor,
    initial_state: torch.Tensor,
    update_scale: torch.Tensor | float | None,
    pooling: str,
    activate: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    kernels = kernels_for(gates, initial_state)
    if kernels is None:
        return recorded.pool(gates, initial_state, update_scale, pooling, activate)
    if isinstance(update_scale, torch.Tensor):
        update_scale = update_scale.transpose(0, 1)
    run = Pool.apply if torch.is_grad_enabled() else kernels.pool_for_inference
    gates = gates.transpose(0, 1)
    outputs, last = run(gates, initial_state, update_scale, pooling, activate)
    return outputs.transpose(0, 1), last


class Pool(Function):
    """Activations, scan and output gate of gates `(time, batch, gates * units)`.

    Two arrays are kept for the gradient: the packed gates as they came, and the cell
    states. The activations are computed again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        gates: torch.Tensor,
        initial_state: torch.Tensor,
        update_scale: torch.Tensor | float | None,
        pooling: str,
        activate: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        state = initial_state.to(accumulator(gates.dtype))
        kernels = unrecorded_kernels_for(gates)
        outputs, cells = kernels.pool(gates, state, update_scale, pooling, activate)
        mask = update_scale if isinstance(update_scale, torch.Tensor) else None
        number = update_scale if mask is None else None
        ctx.arguments = number, pooling, activate
        ctx.save_for_backward(gates, initial_state, mask, cells)
        # A view would keep the sequence alive, and change with it.
        return outputs, cells[-1].clone()

    @staticmethod
    def backward(
        ctx: Any, d_outputs: torch.Tensor, d_last: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        gates, initial_state, mask, cells = ctx.saved_tensors
        number, pooling, activate = ctx.arguments
        update_scale = number if mask is None else mask
        kernels = kernels_for(d_outputs, d_last)
        if kernels is None or torch.is_grad_enabled():  # for a second derivative
            d_gates, d_state = _differentiable_gradients(
                gates, initial_state, update_scale, pooling, activate, d_outputs, d_last
            )
        else:
            state = initial_state.to(cells.dtype)
            d_gates, d_state = kernels.pool_gradients(
                gates, state, update_scale, pooling, activate, cells, d_outputs, d_last
            )
        return d_gates, d_state.to(initial_state.dtype), None, None, None


def _differentiable_gradients(
    gates: torch.Tensor,
    initial_state: torch.Tensor,
    update_scale: torch.Tensor | float | None,
    pooling: str,
    activate: bool,
    d_outputs: torch.Tensor,
    d_last: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients by gates and initial state, which can be differentiated again.

    No gradient is recorded through `pool_gradients` of the kernels.
    """
    if isinstance(update_scale, torch.Tensor):
        update_scale = update_scale.transpose(0, 1)
    d_gates, d_state = recorded.pool_gradients(
        gates.transpose(0, 1), initial_state, update_scale, pooling, activate,
        d_outputs.transpose(0, 1), d_last, linear_scan,
    )  # fmt: skip
    return d_gates.transpose(0, 1), d_state
