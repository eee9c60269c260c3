"""JAX for ONNX: the forms that jax2onnx, which Keras exports with, can convert.

jax2onnx knows no operation that differs by platform, no loop that runs backwards, and
no sort of a length that is known only when the model runs.
"""

import sys
from types import FrameType

import jax
import jax.numpy as jnp
from jax import lax


def is_exporting_to_onnx() -> bool:
    """Whether jax2onnx traces. A trace does not say so: the call stack does."""
    if "jax2onnx" not in sys.modules:
        return False
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("jax2onnx."):
            return True
        frame = frame.f_back
    return False


def scan(
    decay: jax.Array, inputs: jax.Array, initial_state: jax.Array, reverse: bool
) -> jax.Array:
    """`linear_scan` one step at a time: a loop of ONNX, for any number of steps."""
    if reverse:
        decay, inputs = jnp.flip(decay, 1), jnp.flip(inputs, 1)

    def step(state: jax.Array, at: tuple) -> tuple[jax.Array, jax.Array]:
        state = at[0] * state + at[1]
        return state, state

    steps = jnp.swapaxes(decay, 0, 1), jnp.swapaxes(inputs, 0, 1)
    states = jnp.swapaxes(lax.scan(step, initial_state, steps)[1], 0, 1)
    return jnp.flip(states, 1) if reverse else states


def valid_first(mask: jax.Array) -> jax.Array:
    """The indices of the valid steps of each sequence in their order, `(batch, time)`.

    Let `count[t]` be the number of valid steps up to step t. Valid step n, counted from
    0, stands behind all steps with `count[t] <= n`, so their number is its index. A
    binary search finds that number, in as many rounds as any length needs. After the
    last valid step the index is `time`.
    """
    ones = jnp.ones_like(mask, dtype="int32")
    step = jnp.cumsum(ones, axis=1) - 1
    time = jnp.sum(ones, axis=1, keepdims=True)
    count = jnp.cumsum(mask.astype("int32"), axis=1)
    steps = mask.shape[1]
    rounds = steps.bit_length() if isinstance(steps, int) else 31

    def halve(found: jax.Array, size: jax.Array) -> tuple[jax.Array, None]:
        further = found + size
        at = jnp.minimum(further, time) - 1
        is_before = (further <= time) & (jnp.take_along_axis(count, at, axis=1) <= step)
        return jnp.where(is_before, further, found), None

    # A loop: as many copies of the round would take jax2onnx minutes to convert.
    sizes = jnp.asarray([2**k for k in reversed(range(rounds))], "int32")
    return lax.scan(halve, jnp.zeros_like(step), sizes)[0]
