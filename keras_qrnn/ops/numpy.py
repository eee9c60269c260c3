"""NumPy: inference only. It computes the equations directly."""

import numpy as np

from keras_qrnn.ops import equations
from keras_qrnn.ops.equations import GATES, Gates


def linear_scan(
    decay: np.ndarray, inputs: np.ndarray, initial_state: np.ndarray, reverse: bool
) -> np.ndarray:
    accumulator = np.promote_types(inputs.dtype, np.float32)
    states = np.empty(inputs.shape, accumulator)
    state = initial_state.astype(accumulator)
    steps = range(inputs.shape[1])
    for t in reversed(steps) if reverse else steps:
        state = decay[:, t] * state + inputs[:, t]
        states[:, t] = state
    return states.astype(inputs.dtype, copy=False)


def pool(
    gates: np.ndarray,
    initial_state: np.ndarray,
    update_scale: np.ndarray | float | None,
    pooling: str,
    activate: bool,
) -> tuple[np.ndarray, np.ndarray]:
    packed = gates.astype(np.promote_types(gates.dtype, np.float32))
    activated = _activated_gates(packed, pooling, activate)
    if isinstance(update_scale, np.ndarray):
        update_scale = update_scale.astype(packed.dtype)
    decay, inputs = equations.decay_and_inputs(activated, update_scale)
    cells = linear_scan(decay, inputs, initial_state, reverse=False)
    outputs = equations.outputs_of(activated, cells)
    return outputs.astype(gates.dtype), cells[:, -1]


def _activated_gates(packed: np.ndarray, pooling: str, activate: bool) -> Gates:
    """Splits packed gates, and activates them if asked to."""
    z, f, *others = np.split(packed, len(GATES[pooling]), axis=-1)
    if activate:
        return Gates(np.tanh(z), _sigmoid(-f), *map(_sigmoid, others))
    return Gates(z, 1 - f, *others)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    """The sigmoid. It does not overflow for any `x`."""
    tail = np.exp(-np.abs(x))
    return np.where(x < 0, tail, 1) / (1 + tail)


def causal_conv(
    inputs: np.ndarray, kernel: np.ndarray, bias: np.ndarray | None
) -> np.ndarray:
    time = inputs.shape[1] - kernel.shape[0] + 1
    outputs = sum(inputs[:, j : j + time] @ tap for j, tap in enumerate(kernel))
    # A product of bfloat16 matrices is float32.
    outputs = outputs.astype(inputs.dtype)
    return outputs if bias is None else outputs + bias[..., None, :]


def conv_pool(
    inputs: np.ndarray,
    kernel: np.ndarray,
    bias: np.ndarray | None,
    initial_state: np.ndarray,
    update_scale: np.ndarray | float | None,
    pooling: str,
) -> tuple[np.ndarray, np.ndarray]:
    gates = causal_conv(inputs, kernel, bias)
    return pool(gates, initial_state, update_scale, pooling, activate=True)


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    if targets.size and targets.min() < 0:  # NumPy would count from the end
        raise IndexError(f"Expected targets from 0. Received: {targets.min()}")
    picked = np.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    greatest = logits.max(-1)
    return np.log(np.exp(logits - greatest[..., None]).sum(-1)) + greatest - picked
