"""JAX: the scan and the poolings, with gradients by hand in forward and reverse mode.

The scan is `_in_place` or `_associative`, and its gradient is `_scan_derivatives`.
XLA fuses elementwise operations. `ops/jax_transpose.py` explains how a gradient by hand
gets both modes. Shapes and dtypes are those of `Backend` in `ops/backend.py`.
"""

import functools
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from keras_qrnn.ops import equations, jax_onnx
from keras_qrnn.ops.blocks import piece_length
from keras_qrnn.ops.equations import GATES, Gates
from keras_qrnn.ops.jax_onnx import is_exporting_to_onnx
from keras_qrnn.ops.jax_transpose import Linear, linear_call, vary_alike

# Inference on a CPU convolves and pools pieces of this many steps, those of all
# sequences counted together: see `ops/blocks.py`.
PIECE_STEPS = 1024


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


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _linear_scan(
    decay: jax.Array, inputs: jax.Array, initial_state: jax.Array, reverse: bool
) -> jax.Array:
    """`linear_scan` on tensors of the accumulator's dtype."""
    if is_exporting_to_onnx():
        return jax_onnx.scan(decay, inputs, initial_state, reverse)
    return _scan(decay, inputs, initial_state, reverse)


@_linear_scan.defjvp
def _linear_scan_jvp(
    reverse: bool, primals: tuple, tangents: tuple
) -> tuple[jax.Array, jax.Array]:
    decay, _, initial_state = primals
    states = _linear_scan(*primals, reverse)
    residuals = decay, initial_state, states
    [d_states] = linear_call(*_scan_derivatives(reverse), residuals, tangents)
    return states, d_states


@functools.cache
def _scan_derivatives(reverse: bool) -> tuple[Linear, Linear]:
    """The tangent and the gradients of the scan, for `linear_call`.

    The residuals of both functions are `(decay, initial_state, states)`.

    Returns:
        A function from the tangents of decay, inputs and initial state to the tangent
        of the states. A function from the gradient by the states to the gradients by
        decay, inputs and initial state.
    """

    def tangent(
        residuals: tuple, tangents: Sequence[jax.Array]
    ) -> tuple[jax.Array, ...]:
        decay, initial_state, states = residuals
        d_decay, d_inputs, d_initial = tangents
        d_inputs += d_decay * _shifted(states, initial_state, reverse)
        return (_linear_scan(decay, d_inputs, d_initial, reverse),)

    def gradients(
        residuals: tuple, d_states: Sequence[jax.Array]
    ) -> tuple[jax.Array, ...]:
        decay, initial_state, states = residuals
        adjoint = _adjoint(decay, d_states[0], reverse)
        first = -1 if reverse else 0
        return (
            adjoint * _shifted(states, initial_state, reverse),
            adjoint,
            decay[:, first] * adjoint[:, first],
        )

    return tangent, gradients


# `jit` keeps the compiled loop. Without it, every eager call would compile it anew.
@partial(jax.jit, static_argnums=3)
def _scan(
    decay: jax.Array, inputs: jax.Array, initial_state: jax.Array, reverse: bool
) -> jax.Array:
    # On a CPU, XLA runs a step of the loop in well under a microsecond: no scan in
    # blocks is faster. A GPU launches a kernel for every step: fewer steps are faster.
    # Under `jax.export` the number of steps may be a symbol, which cannot be halved.
    if not isinstance(inputs.shape[1], int):
        return _in_place(decay, inputs, initial_state, reverse)
    return lax.platform_dependent(
        decay,
        inputs,
        initial_state,
        cpu=partial(_in_place, reverse=reverse),
        default=partial(_associative, reverse=reverse),
    )


def _adjoint(decay: jax.Array, gradient: jax.Array, reverse: bool) -> jax.Array:
    """`a[t] = gradient[t] + decay[t + 1] * a[t + 1]`: a scan in the other direction."""
    zeros = jnp.zeros_like(decay[:, 0])
    following = _shifted(decay, zeros, not reverse)
    return _linear_scan(following, gradient, zeros, not reverse)


def _shifted(sequence: jax.Array, initial: jax.Array, reverse: bool) -> jax.Array:
    """`sequence` shifted by one step in scan order. The first step is `initial`."""
    if reverse:
        return jnp.concatenate([sequence[:, 1:], initial[:, None]], axis=1)
    return jnp.concatenate([initial[:, None], sequence[:, :-1]], axis=1)


def _in_place(
    decay: jax.Array, inputs: jax.Array, initial_state: jax.Array, reverse: bool
) -> jax.Array:
    """The scan one step at a time. It writes the states over the inputs.

    `lax.scan` would transpose its arguments and results.
    """
    time = inputs.shape[1]

    def step(n: jax.Array, carry: tuple) -> tuple[jax.Array, jax.Array]:
        state, states = carry
        t = time - 1 - n if reverse else n
        state *= lax.dynamic_index_in_dim(decay, t, 1, keepdims=False)
        state += lax.dynamic_index_in_dim(states, t, 1, keepdims=False)
        return state, lax.dynamic_update_index_in_dim(states, state, t, 1)

    carry = vary_alike((initial_state, inputs), like=decay)
    return lax.fori_loop(0, time, step, carry)[1]


def _associative(
    decay: jax.Array, inputs: jax.Array, initial_state: jax.Array, reverse: bool
) -> jax.Array:
    """The scan in a logarithmic number of steps, with twice the arithmetic.

    It multiplies the decays of many steps. Decays above 1 may make a product infinite:
    the states are then infinite or NaN.
    """

    def combine(earlier: tuple, later: tuple) -> tuple:
        return earlier[0] * later[0], later[0] * earlier[1] + later[1]

    products, states = lax.associative_scan(
        combine, (decay, inputs), reverse=reverse, axis=1
    )
    return states + products * initial_state[:, None]


@partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def pool(
    gates: jax.Array,
    initial_state: jax.Array,
    update_scale: jax.Array | float | None,
    pooling: str,
    activate: bool,
) -> tuple[jax.Array, jax.Array]:
    return _pool(gates, initial_state, update_scale, pooling, activate)[0]


@partial(pool.defjvp, symbolic_zeros=True)
def _pool_jvp(
    pooling: str, activate: bool, primals: tuple, tangents: tuple
) -> tuple[tuple, tuple]:
    gates, initial_state, update_scale = primals
    results, cells = _pool(gates, initial_state, update_scale, pooling, activate)
    # Only the arguments and the cell states are kept. The activations are recomputed.
    residuals = gates, initial_state, update_scale, cells
    derivatives = _pool_derivatives(pooling, activate)
    tangents = tuple(map(_instantiated, tangents[:2]))
    return results, linear_call(*derivatives, residuals, tangents)


def _instantiated(tangent: jax.Array | SymbolicZero) -> jax.Array:
    if isinstance(tangent, SymbolicZero):
        return jnp.zeros(tangent.shape, tangent.dtype)
    return tangent


def _pool(
    gates: jax.Array,
    initial_state: jax.Array,
    update_scale: jax.Array | float | None,
    pooling: str,
    activate: bool,
) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """Results of `pool`, and the cell states `(batch, time, units)` of all steps."""
    activated = _activated_gates(gates, pooling, activate)
    scale = _scale(update_scale, activated.z.dtype)
    decay, inputs = equations.decay_and_inputs(activated, scale)
    cells = _linear_scan(decay, inputs, initial_state.astype(inputs.dtype), False)
    outputs = equations.outputs_of(activated, cells)
    return (outputs.astype(gates.dtype), cells[:, -1]), cells


@functools.cache
def _pool_derivatives(pooling: str, activate: bool) -> tuple[Linear, Linear]:
    """The tangent and the gradients of `pool`, for `linear_call`.

    The residuals of both functions are `(gates, initial_state, update_scale, cells)`.

    Returns:
        A function from the tangents of gates and initial state to the tangents of the
        results. A function from the gradients by the results to the gradients by gates
        and initial state.
    """

    def tangent(
        residuals: tuple, tangents: Sequence[jax.Array]
    ) -> tuple[jax.Array, ...]:
        gates, initial_state, update_scale, _ = residuals

        def run(gates: jax.Array, initial_state: jax.Array) -> tuple:
            return _pool(gates, initial_state, update_scale, pooling, activate)[0]

        return jax.jvp(run, (gates, initial_state), tuple(tangents))[1]

    def gradients(
        residuals: tuple, cotangents: Sequence[jax.Array]
    ) -> tuple[jax.Array, ...]:
        gates, initial_state, update_scale, cells = residuals
        activated = _activated_gates(gates, pooling, activate)
        scale = _scale(update_scale, cells.dtype)
        decay, _ = equations.decay_and_inputs(activated, scale)
        previous = _shifted(cells, initial_state.astype(cells.dtype), reverse=False)

        d_outputs, d_last = (cotangent.astype(cells.dtype) for cotangent in cotangents)
        d_cells = equations.outputs_of(activated, d_outputs)
        d_cells = d_cells.at[:, -1].add(d_last)
        adjoint = _adjoint(decay, d_cells, reverse=False)

        d_gates = equations.gate_gradients(
            activated, scale, cells, previous, d_outputs, adjoint
        )
        if activate:
            d_gates = equations.logit_gradients(activated, d_gates)
        d_packed = jnp.concatenate(d_gates, axis=-1).astype(gates.dtype)
        d_initial = decay[:, 0] * adjoint[:, 0]
        return d_packed, d_initial.astype(initial_state.dtype)

    return tangent, gradients


def _activated_gates(packed: jax.Array, pooling: str, activate: bool) -> Gates:
    """Splits packed gates, and activates them if asked to. In the accumulator's dtype.

    Args:
        packed: `(batch, time, len(GATES[pooling]) * units)`.
        pooling: a key of `GATES`.
        activate: whether tanh and sigmoid are applied.
    """
    packed = packed.astype(jnp.promote_types(packed.dtype, jnp.float32))
    z, f, *others = jnp.split(packed, len(GATES[pooling]), axis=-1)
    if activate:
        return Gates(jnp.tanh(z), *map(jax.nn.sigmoid, (-f, *others)))
    return Gates(z, 1 - f, *others)


def _scale(
    update_scale: jax.Array | float | None, dtype: jnp.dtype
) -> jax.Array | None:
    return None if update_scale is None else jnp.asarray(update_scale, dtype)


def causal_conv(
    inputs: jax.Array, kernel: jax.Array, bias: jax.Array | None
) -> jax.Array:
    if kernel.shape[0] == 1:
        # On a GPU, XLA calls cuDNN for every convolution. A product is faster: XLA pads
        # sizes such as 1550 to multiples that tensor cores take in bfloat16.
        outputs = lax.dot_general(inputs, kernel[0], (((2,), (0,)), ((), ())))
    else:
        outputs = lax.conv_general_dilated(
            inputs, kernel, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
        )
    if bias is None:
        return outputs
    # The sum is computed in float32, so the bias's gradient is summed in float32 too.
    accumulator = jnp.promote_types(outputs.dtype, jnp.float32)
    bias = bias.astype(accumulator)[..., None, :]
    return (outputs.astype(accumulator) + bias).astype(outputs.dtype)


def conv_pool(
    inputs: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    initial_state: jax.Array,
    update_scale: jax.Array | float | None,
    pooling: str,
) -> tuple[jax.Array, jax.Array]:
    run = _conv_pool_at_once if is_exporting_to_onnx() else _conv_pool
    return run(inputs, kernel, bias, initial_state, update_scale, pooling)


# If nothing is differentiated, JAX runs this function. On a CPU it works in pieces: the
# gates of all steps need not exist at once. Differentiation replaces it by
# `_conv_pool_jvp`.
@partial(jax.custom_jvp, nondiff_argnums=(5,))
@partial(jax.jit, static_argnums=5)
def _conv_pool(
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


@partial(_conv_pool.defjvp, symbolic_zeros=True)
def _conv_pool_jvp(
    pooling: str, primals: tuple, tangents: tuple
) -> tuple[tuple, tuple]:
    differentiated = [
        n
        for n, tangent in enumerate(tangents[:4])
        if not (tangent is None or isinstance(tangent, SymbolicZero))
    ]

    def run(*values: jax.Array) -> tuple[jax.Array, jax.Array]:
        arguments = list(primals)
        for n, value in zip(differentiated, values, strict=True):
            arguments[n] = value
        inputs, kernel, bias, state, scale = arguments
        return _conv_pool_at_once(inputs, kernel, bias, state, scale, pooling)

    if not differentiated:
        results = run()
        return results, jax.tree.map(jnp.zeros_like, results)
    return jax.jvp(
        run,
        [primals[n] for n in differentiated],
        [tangents[n] for n in differentiated],
    )


def _conv_pool_at_once(
    inputs: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    initial_state: jax.Array,
    update_scale: jax.Array | float | None,
    pooling: str,
) -> tuple[jax.Array, jax.Array]:
    # Under `jax.export` and jax2onnx, sizes may be symbols. In half precision a step
    # would be rounded in other places than in a sequence.
    time = inputs.shape[1] - kernel.shape[0] + 1
    exact = inputs.dtype in (jnp.float32, jnp.float64)
    if isinstance(time, int) and time == 1 and exact:
        return _one_step(inputs, kernel, bias, initial_state, update_scale, pooling)
    gates = causal_conv(inputs, kernel, bias)
    return pool(gates, initial_state, update_scale, pooling, True)


def _one_step(
    inputs: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    initial_state: jax.Array,
    update_scale: jax.Array | float | None,
    pooling: str,
) -> tuple[jax.Array, jax.Array]:
    """`conv_pool` on one step: a product, no loop, and the gradient is JAX's own."""
    window, features, channels = kernel.shape
    seen = inputs.reshape(inputs.shape[0], 1, window * features)
    gates = causal_conv(seen, kernel.reshape(1, window * features, channels), bias)
    activated = _activated_gates(gates[:, 0], pooling, True)
    scale = _scale(update_scale, activated.z.dtype)
    if scale is not None and scale.ndim:
        scale = scale[:, 0]
    state = initial_state.astype(activated.z.dtype)
    outputs, cell = equations.one_step(activated, state, scale)
    return outputs.astype(gates.dtype)[:, None], cell


def _conv_pool_in_pieces(
    inputs: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    initial_state: jax.Array,
    update_scale: jax.Array | float | None,
    pooling: str,
) -> tuple[jax.Array, jax.Array]:
    """`conv_pool` on equal pieces of time in a loop, then on the remaining steps."""
    batch, time = inputs.shape[0], inputs.shape[1] - kernel.shape[0] + 1
    # Under `jax.export`, sizes may be symbols.
    length = piece_length(
        time if isinstance(time, int) else None,
        batch if isinstance(batch, int) else None,
        PIECE_STEPS,
    )
    if length is None or length == time:
        return _conv_pool_at_once(
            inputs, kernel, bias, initial_state, update_scale, pooling
        )

    def write_piece(start: jax.Array | int, size: int, carry: tuple) -> tuple:
        outputs, state = carry
        seen = lax.dynamic_slice_in_dim(inputs, start, size + kernel.shape[0] - 1, 1)
        at = update_scale
        if isinstance(at, jax.Array) and at.ndim:
            at = lax.dynamic_slice_in_dim(at, start, size, axis=1)
        piece, state = _conv_pool_at_once(seen, kernel, bias, state, at, pooling)
        return lax.dynamic_update_slice_in_dim(outputs, piece, start, axis=1), state

    pieces, rest = divmod(time, length)
    accumulator = jnp.promote_types(inputs.dtype, jnp.float32)
    carry = (
        jnp.empty((batch, time, initial_state.shape[1]), inputs.dtype),
        initial_state.astype(accumulator),
    )
    varied = vary_alike(carry, like=(inputs, kernel, bias, update_scale))
    carry = lax.fori_loop(
        0, pieces, lambda n, carry: write_piece(n * length, length, carry), varied
    )
    return write_piece(pieces * length, rest, carry) if rest else carry


@jax.jit
def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    picked = jnp.where(targets < 0, jnp.nan, picked)  # JAX would count from the end
    return jax.nn.logsumexp(logits, axis=-1) - picked
