"""NumPy: inference only, the equations as they stand."""

import numpy as np


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
    return states.astype(inputs.dtype)


def pool(
    gates: np.ndarray,
    initial_state: np.ndarray,
    keep: np.ndarray | float | None,
    pooling: str,
    activate: bool,
) -> tuple[np.ndarray, np.ndarray]:
    packed = gates.astype(np.promote_types(gates.dtype, np.float32))
    z, f, *rest = np.split(packed, len(pooling) + 1, axis=-1)
    if activate:
        z = np.tanh(z)
        f, *rest = (1 / (1 + np.exp(-gate)) for gate in (f, *rest))
    keep = 1.0 if keep is None else np.asarray(keep).astype(packed.dtype)
    update = keep * (1 - f)
    inputs = keep * rest[1] * z if pooling == "ifo" else update * z
    cells = linear_scan(1 - update, inputs, initial_state, reverse=False)
    outputs = cells if pooling == "f" else rest[0] * cells
    return outputs.astype(gates.dtype), cells[:, -1]


def causal_conv(
    inputs: np.ndarray, kernel: np.ndarray, bias: np.ndarray | None
) -> np.ndarray:
    time = inputs.shape[1] - kernel.shape[0] + 1
    outputs = sum(inputs[:, j : j + time] @ tap for j, tap in enumerate(kernel))
    return outputs if bias is None else outputs + bias


def conv_pool(
    inputs: np.ndarray,
    kernel: np.ndarray,
    bias: np.ndarray | None,
    initial_state: np.ndarray,
    keep: np.ndarray | float | None,
    pooling: str,
) -> tuple[np.ndarray, np.ndarray]:
    gates = causal_conv(inputs, kernel, bias)
    return pool(gates, initial_state, keep, pooling, activate=True)


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    if targets.size and targets.min() < 0:  # not counted from the end
        raise IndexError(f"Expected targets from 0. Received: {targets.min()}")
    picked = np.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    greatest = logits.max(-1)
    return np.log(np.exp(logits - greatest[..., None]).sum(-1)) + greatest - picked
