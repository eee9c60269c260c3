"""The scan with its gradient by hand: an autograd function that calls kernels.

The recurrence itself is `linear_scan` of a set of kernels, its gradient
`scan_gradients`: see `loops.py`.
"""

from typing import Any

import torch
from torch.autograd import Function

from keras_qrnn.ops.torch import recorded
from keras_qrnn.ops.torch.dispatch import kernels_for, unrecorded_kernels_for
from keras_qrnn.ops.torch.shared import accumulator, shifted


def linear_scan(
    decay: torch.Tensor,
    inputs: torch.Tensor,
    initial_state: torch.Tensor,
    reverse: bool,
) -> torch.Tensor:
    if kernels_for(inputs, decay, initial_state) is None:
        return recorded.linear_scan(decay, inputs, initial_state, reverse)
    dtype = accumulator(inputs.dtype)
    states = LinearScan.apply(
        decay.to(dtype).transpose(0, 1),
        inputs.to(dtype).transpose(0, 1),
        initial_state.to(dtype),
        reverse,
    )
    return states.transpose(0, 1).to(inputs.dtype)


class LinearScan(Function):
    """The scan of tensors `(time, batch, units)` of the accumulator's dtype."""

    @staticmethod
    def forward(
        ctx: Any,
        decay: torch.Tensor,
        inputs: torch.Tensor,
        initial_state: torch.Tensor,
        reverse: bool,
    ) -> torch.Tensor:
        kernels = unrecorded_kernels_for(inputs)
        states = kernels.linear_scan(decay, inputs, initial_state, reverse)
        ctx.reverse = reverse
        ctx.save_for_backward(decay, initial_state, states)
        return states

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        decay, initial_state, states = ctx.saved_tensors
        reverse = ctx.reverse
        kernels = kernels_for(gradient)
        if kernels is None or torch.is_grad_enabled():  # for a second derivative
            d_decay, d_inputs = _differentiable_gradients(
                decay, initial_state, states, gradient, reverse
            )
        else:
            d_decay, d_inputs = kernels.scan_gradients(
                decay, initial_state, states, gradient, reverse
            )
        first = -1 if reverse else 0
        return d_decay, d_inputs, decay[first] * d_inputs[first], None


def _differentiable_gradients(
    decay: torch.Tensor,
    initial_state: torch.Tensor,
    states: torch.Tensor,
    gradient: torch.Tensor,
    reverse: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients by decay and inputs, which can be differentiated again.

    No gradient is recorded through `scan_gradients` of the kernels.
    """
    zeros = torch.zeros_like(initial_state)
    following = shifted(decay, zeros, not reverse).transpose(0, 1)
    adjoint = linear_scan(following, gradient.transpose(0, 1), zeros, not reverse)
    adjoint = adjoint.transpose(0, 1)
    return adjoint * shifted(states, initial_state, reverse), adjoint
