"""JAX: a scan under hand-written gradients; XLA fuses what is elementwise."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from keras_qrnn.ops.blocks import piece_length
from keras_qrnn.ops.equations import GATES

# Inference in pieces of this many steps of all sequences: see `ops/blocks.py`.
PIECE_ROWS = 1024


def linear_scan(
    decay: jax.Array, inputs: jax.Array, initial_state: jax.Array, reverse: bool
) -> jax.Array:
    accumulator = jnp.promote_types(inputs.dtype, jnp.float32)
    states = _linear_scan(
        decay.astype(accumulator),
        inputs.astype(accumulator),
        initial_state.astype(accumulator),
        reverse,
    )
    return states.astype(inputs.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _linear_scan(
    decay: jax.Array, inputs: jax.Array, initial_state: jax.Array, reverse: bool
) -> jax.Array:
    return _scan(decay, inputs, initial_state, reverse)


# Compiled here, because an eager call would compile its loop anew every time.
@partial(jax.jit, static_argnums=3)
def _scan(
    decay: jax.Array, inputs: jax.Array, initial_state: jax.Array, reverse: bool
) -> jax.Array:
    # On the CPU, XLA runs a step of a compiled loop in well under a microsecond
    # and no cut of the time axis wins. A GPU launches a kernel for every step. (In
    # an export the length may be a symbol, whose halves are not known.)
    if not isinstance(inputs.shape[1], int):
        return _sequential(decay, inputs, initial_state, reverse)
    return lax.platform_dependent(
        decay,
        inputs,
        initial_state,
        cpu=partial(_sequential, reverse=reverse),
        default=partial(_associative, reverse=reverse),
    )


def _linear_scan_forward(
    decay: jax.Array, inputs: jax.Array, initial_state: jax.Array, reverse: bool
) -> tuple:
    states = _linear_scan(decay, inputs, initial_state, reverse)
    return states, (decay, initial_state, states)


def _linear_scan_backward(reverse: bool, saved: tuple, gradient: jax.Array) -> tuple:
    decay, initial_state, states = saved
    adjoint = _adjoint(decay, gradient, reverse)
    first = -1 if reverse else 0
    return (
        adjoint * _previous(states, initial_state, reverse),
        adjoint,
        decay[:, first] * adjoint[:, first],
    )


_linear_scan.defvjp(_linear_scan_forward, _linear_scan_backward)


def _adjoint(decay: jax.Array, gradient: jax.Array, reverse: bool) -> jax.Array:
    """`a[t] = gradient[t] + decay[t + 1] * a[t + 1]`: the scan, the other way."""
    zeros = jnp.zeros_like(decay[:, 0])
    following = _previous(decay, zeros, not reverse)
    return _linear_scan(following, gradient, zeros, not reverse)


def _previous(sequence: jax.Array, initial: jax.Array, reverse: bool) -> jax.Array:
    """`sequence` one step later in scan order, `initial` in the first place."""
    if reverse:
        return jnp.concatenate([sequence[:, 1:], initial[:, None]], axis=1)
    return jnp.concatenate([initial[:, None], sequence[:, :-1]], axis=1)


def _sequential(
    decay: jax.Array, inputs: jax.Array, initial_state: jax.Array, reverse: bool
) -> jax.Array:
    # In the memory of the inputs: `lax.scan` would transpose what goes in and out.
    time = inputs.shape[1]

    def step(n: jax.Array, carry: tuple) -> tuple[jax.Array, jax.Array]:
        state, states = carry
        t = time - 1 - n if reverse else n
        state *= lax.dynamic_index_in_dim(decay, t, 1, keepdims=False)
        state += lax.dynamic_index_in_dim(states, t, 1, keepdims=False)
        return state, lax.dynamic_update_index_in_dim(states, state, t, 1)

    return lax.fori_loop(0, time, step, (initial_state, inputs))[1]


def _associative(
    decay: jax.Array, inputs: jax.Array, initial_state: jax.Array, reverse: bool
) -> jax.Array:
    """The scan in a logarithmic number of steps, with twice the arithmetic."""

    def combine(earlier: tuple, later: tuple) -> tuple:
        return earlier[0] * later[0], later[0] * earlier[1] + later[1]

    products, states = lax.associative_scan(
        combine, (decay, inputs), reverse=reverse, axis=1
    )
    return states + products * initial_state[:, None]


def pool(
    gates: jax.Array,
    initial_state: jax.Array,
    update_scale: jax.Array | float | None,
    pooling: str,
    activate: bool,
) -> tuple[jax.Array, jax.Array]:
    return _pool(gates, initial_state, update_scale, pooling, activate)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _pool(
    gates: jax.Array,
    initial_state: jax.Array,
    update_scale: jax.Array | float | None,
    pooling: str,
    activate: bool,
) -> tuple[jax.Array, jax.Array]:
    return _pool_forward(gates, initial_state, update_scale, pooling, activate)[0]


def _pool_forward(
    gates: jax.Array,
    initial_state: jax.Array,
    update_scale: jax.Array | float | None,
    pooling: str,
    activate: bool,
) -> tuple:
    z, f, o, i = _activations(gates, pooling, activate)
    factor = _factor(update_scale, z.dtype)
    update = factor * (1 - f)
    inputs = update * z if i is None else factor * i * z
    cells = _linear_scan(1 - update, inputs, initial_state.astype(z.dtype), False)
    outputs = cells if o is None else o * cells
    # The activations are recomputed: only what cannot be is kept.
    saved = (gates, initial_state, update_scale, cells)
    return (outputs.astype(gates.dtype), cells[:, -1]), saved


def _pool_backward(
    pooling: str, activate: bool, saved: tuple, gradients: tuple
) -> tuple:
    gates, initial_state, update_scale, cells = saved
    z, f, o, i = _activations(gates, pooling, activate)
    factor = _factor(update_scale, z.dtype)
    update = factor * (1 - f)
    previous = _previous(cells, initial_state.astype(z.dtype), reverse=False)

    d_outputs, d_last = (gradient.astype(z.dtype) for gradient in gradients)
    d_cells = d_outputs if o is None else d_outputs * o
    d_cells = d_cells.at[:, -1].add(d_last)
    adjoint = _adjoint(1 - update, d_cells, reverse=False)

    if i is None:
        d_gates = [adjoint * update, adjoint * factor * (previous - z)]
    else:
        d_gates = [adjoint * factor * i, adjoint * factor * previous]
    if o is not None:
        d_gates.append(d_outputs * cells)
    if i is not None:
        d_gates.append(adjoint * factor * z)
    if activate:
        d_gates[0] *= 1 - z * z
        for n, gate in enumerate((f, o, i)[: len(d_gates) - 1], start=1):
            d_gates[n] *= gate * (1 - gate)
    d_packed = jnp.concatenate(d_gates, axis=-1).astype(gates.dtype)
    d_initial = (1 - update[:, 0]) * adjoint[:, 0]
    return d_packed, d_initial.astype(initial_state.dtype), _no_gradient(update_scale)


_pool.defvjp(_pool_forward, _pool_backward)


def _activations(gates: jax.Array, pooling: str, activate: bool) -> tuple:
    """The gates z, f, o, i in the accumulator's dtype, None where there is none."""
    packed = gates.astype(jnp.promote_types(gates.dtype, jnp.float32))
    z, *others = jnp.split(packed, len(GATES[pooling]), axis=-1)
    if activate:
        z, others = jnp.tanh(z), [jax.nn.sigmoid(gate) for gate in others]
    return z, *others, *[None] * (3 - len(others))


def _factor(
    update_scale: jax.Array | float | None, dtype: jnp.dtype
) -> jax.Array | float:
    return 1.0 if update_scale is None else jnp.asarray(update_scale, dtype)


def _no_gradient(
    update_scale: jax.Array | float | None,
) -> jax.Array | np.ndarray | None:
    if update_scale is None:
        return None
    if jnp.issubdtype(jnp.result_type(update_scale), jnp.floating):
        return jnp.zeros_like(update_scale)
    return np.zeros(jnp.shape(update_scale), jax.dtypes.float0)


def causal_conv(
    inputs: jax.Array, kernel: jax.Array, bias: jax.Array | None
) -> jax.Array:
    if kernel.shape[0] == 1:
        # On a GPU, XLA calls cuDNN for a convolution, whatever its window. For a
        # product it pads sizes such as 1550 to what tensor cores take in bfloat16.
        outputs = lax.dot_general(inputs, kernel[0], (((2,), (0,)), ((), ())))
    else:
        outputs = lax.conv_general_dilated(
            inputs, kernel, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
        )
    if bias is None:
        return outputs
    # In float32, so that the bias's gradient is summed in it.
    accumulator = jnp.promote_types(outputs.dtype, jnp.float32)
    return (outputs.astype(accumulator) + bias.astype(accumulator)).astype(
        outputs.dtype
    )


# Runs as it stands where nothing is differentiated: there the gates need not last.
@partial(jax.custom_vjp, nondiff_argnums=(5,))
@partial(jax.jit, static_argnums=5)
def conv_pool(
    inputs: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    initial_state: jax.Array,
    update_scale: jax.Array | float | None,
    pooling: str,
) -> tuple[jax.Array, jax.Array]:
    return lax.platform_dependent(
        inputs,
        kernel,
        bias,
        initial_state,
        update_scale,
        cpu=partial(_conv_pool_in_pieces, pooling=pooling),
        default=partial(_conv_pool_at_once, pooling=pooling),
    )


def _conv_pool_forward(
    inputs: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    initial_state: jax.Array,
    update_scale: jax.Array | float | None,
    pooling: str,
) -> tuple:
    results, pullback = jax.vjp(
        lambda *arguments: _conv_pool_at_once(*arguments, update_scale, pooling),
        inputs, kernel, bias, initial_state,
    )  # fmt: skip
    return results, (pullback, update_scale)


def _conv_pool_backward(pooling: str, saved: tuple, gradients: tuple) -> tuple:
    pullback, update_scale = saved
    return *pullback(gradients), _no_gradient(update_scale)


conv_pool.defvjp(_conv_pool_forward, _conv_pool_backward)


def _conv_pool_at_once(
    inputs: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    initial_state: jax.Array,
    update_scale: jax.Array | float | None,
    pooling: str,
) -> tuple[jax.Array, jax.Array]:
    gates = causal_conv(inputs, kernel, bias)
    return _pool(gates, initial_state, update_scale, pooling, True)


def _conv_pool_in_pieces(
    inputs: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    initial_state: jax.Array,
    update_scale: jax.Array | float | None,
    pooling: str,
) -> tuple[jax.Array, jax.Array]:
    """Equal pieces of time in a loop, then what is left."""
    batch, time = inputs.shape[0], inputs.shape[1] - kernel.shape[0] + 1
    # In an export, sizes may be symbols.
    known = [n if isinstance(n, int) else None for n in (time, batch)]
    length = piece_length(*known, PIECE_ROWS)
    if length is None or length == time:
        return _conv_pool_at_once(
            inputs, kernel, bias, initial_state, update_scale, pooling
        )

    def write_piece(start: jax.Array | int, size: int, carry: tuple) -> tuple:
        outputs, state = carry
        seen = lax.dynamic_slice_in_dim(inputs, start, size + kernel.shape[0] - 1, 1)
        at = update_scale
        if update_scale is not None and jnp.ndim(update_scale):
            at = lax.dynamic_slice_in_dim(update_scale, start, size, axis=1)
        piece, state = _conv_pool_at_once(seen, kernel, bias, state, at, pooling)
        return lax.dynamic_update_slice_in_dim(outputs, piece, start, axis=1), state

    pieces, rest = divmod(time, length)
    accumulator = jnp.promote_types(inputs.dtype, jnp.float32)
    carry = (
        jnp.empty((batch, time, initial_state.shape[1]), inputs.dtype),
        initial_state.astype(accumulator),
    )
    carry = lax.fori_loop(
        0, pieces, lambda n, carry: write_piece(n * length, length, carry), carry
    )
    return write_piece(pieces * length, rest, carry) if rest else carry


@jax.jit
def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    picked = jnp.where(targets < 0, jnp.nan, picked)  # not counted from the end
    return jax.nn.logsumexp(logits, axis=-1) - picked
