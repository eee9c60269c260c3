"""TensorFlow: one `tf.while_loop` under hand-written gradients, compiled by XLA where
that is worth it."""

import functools
import sys
from collections.abc import Callable

import tensorflow as tf
from keras import ops

from keras_qrnn.ops.blocks import is_cut_in_blocks
from keras_qrnn.ops.equations import GATES


def _run(function: Callable, *arguments) -> tf.Tensor | tuple[tf.Tensor, ...]:
    """Calls `function`, on a CPU compiled where the sequence it is about, the first
    argument, will not come in many lengths."""
    compiles = _is_compiled(arguments[0])
    return (_by_xla(function) if compiles else function)(*arguments)


def _is_compiled(sequence: tf.Tensor) -> bool:
    """XLA takes a tenth of a second for each shape that it meets. Lengths that a graph
    does not know, and those of eager calls, may be as many as there are calls."""
    in_graph = not tf.executing_eagerly()
    has_xla = sys.platform != "darwin"  # a Mac's GPU has none
    return in_graph and has_xla and not _has_gpu() and sequence.shape[1] is not None


@functools.cache
def _by_xla(function: Callable) -> Callable:
    return tf.function(function, jit_compile=True, autograph=False)


def linear_scan(
    decay: tf.Tensor, inputs: tf.Tensor, initial_state: tf.Tensor, reverse: bool
) -> tf.Tensor:
    accumulator = _accumulator(inputs.dtype)
    states = _linear_scan(
        tf.cast(decay, accumulator),
        tf.cast(inputs, accumulator),
        tf.cast(initial_state, accumulator),
        reverse,
    )
    return tf.cast(states, inputs.dtype)


def _accumulator(dtype: tf.DType) -> tf.DType:
    return tf.float64 if dtype == tf.float64 else tf.float32


def _linear_scan(
    decay: tf.Tensor, inputs: tf.Tensor, initial_state: tf.Tensor, reverse: bool
) -> tf.Tensor:
    @tf.custom_gradient
    def scan(
        decay: tf.Tensor, inputs: tf.Tensor, initial_state: tf.Tensor
    ) -> tuple[tf.Tensor, Callable]:
        states = _run(_scan, decay, inputs, initial_state, reverse)
        # A graph made for batches of any size may have run.
        states.set_shape(inputs.shape)

        def gradient(d_states: tf.Tensor) -> tuple[tf.Tensor, ...]:
            return _run(_scan_gradient, decay, initial_state, states, d_states, reverse)

        return states, gradient

    return scan(decay, inputs, initial_state)


def _scan_gradient(
    decay: tf.Tensor,
    initial_state: tf.Tensor,
    states: tf.Tensor,
    d_states: tf.Tensor,
    reverse: bool,
    scan: Callable = _linear_scan,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    adjoint = _adjoint(decay, d_states, reverse, scan=scan)
    first = -1 if reverse else 0
    return (
        adjoint * _previous(states, initial_state, reverse),
        adjoint,
        decay[:, first] * adjoint[:, first],
    )


def _adjoint(
    decay: tf.Tensor,
    gradient: tf.Tensor,
    reverse: bool,
    last: tf.Tensor | None = None,
    scan: Callable = _linear_scan,
) -> tf.Tensor:
    """`a[t] = gradient[t] + decay[t + 1] * a[t + 1]`: the scan, the other way.

    Args:
        last: a gradient of the last state in addition.
        scan: what runs it.
    """
    ones = tf.ones_like(decay[:, 0])
    last = tf.zeros_like(ones) if last is None else last
    following = _previous(decay, ones, not reverse)
    return scan(following, gradient, last, not reverse)


def _previous(sequence: tf.Tensor, initial: tf.Tensor, reverse: bool) -> tf.Tensor:
    """`sequence` one step later in scan order, `initial` in the first place."""
    if reverse:
        return tf.concat([sequence[:, 1:], initial[:, None]], axis=1)
    return tf.concat([initial[:, None], sequence[:, :-1]], axis=1)


def _scan(
    decay: tf.Tensor, inputs: tf.Tensor, initial_state: tf.Tensor, reverse: bool
) -> tf.Tensor:
    # Of a stateful layer's batch only the state knows the size; where it is 1, a
    # loop whose inputs do not know it would change its state's shape.
    shape = (initial_state.shape[0], None, None)
    decay, inputs = (tf.ensure_shape(x, shape) for x in (decay, inputs))
    batch, time, units = inputs.shape
    width = None if None in (batch, units) else batch * units
    if _is_compiled(inputs):
        scan = _in_place
    elif _has_gpu() and time is not None:
        scan = _halving
    else:
        # Fewer steps for a GPU, which launches kernels for every one.
        cut = _has_gpu() or is_cut_in_blocks(time, width)
        scan = _blocked if cut else _sequential
        # Run eagerly, a loop would dispatch every step: then it runs as a graph.
        scan = _as_graph(scan) if tf.executing_eagerly() else scan
    states = scan(decay, inputs, initial_state, reverse)
    return tf.ensure_shape(states, (batch, time, units))


@functools.cache
def _has_gpu() -> bool:
    """Whether the machine has one that TensorFlow may use: a graph does not know on
    which device it will run."""
    return bool(tf.config.list_logical_devices("GPU"))


def _in_place(
    decay: tf.Tensor, inputs: tf.Tensor, initial_state: tf.Tensor, reverse: bool
) -> tf.Tensor:
    """For XLA, which runs the loop in the memory of the inputs.

    Its gradient is for second derivatives only: TensorFlow has none for the loop, and
    asks for that of `states` in `_linear_scan`.
    """

    @tf.custom_gradient
    def scan(
        decay: tf.Tensor, inputs: tf.Tensor, initial_state: tf.Tensor
    ) -> tuple[tf.Tensor, Callable]:
        time = inputs.shape[1]

        def step(n: tf.Tensor, state: tf.Tensor, states: tf.Tensor) -> tuple:
            t = time - 1 - n if reverse else n
            state = decay[:, t] * state + states[:, t]
            return n + 1, state, ops.slice_update(states, [0, t, 0], state[:, None])

        start = 0, tf.ensure_shape(initial_state, inputs[:, 0].shape), inputs
        _, _, states = tf.while_loop(
            lambda n, *_: n < time, step, start, maximum_iterations=time
        )

        def gradient(d_states: tf.Tensor) -> tuple[tf.Tensor, ...]:
            again = _in_place(decay, inputs, initial_state, reverse)
            return _scan_gradient(
                decay, initial_state, again, d_states, reverse, _in_place
            )

        return states, gradient

    return scan(decay, inputs, initial_state)


def _halving(
    decay: tf.Tensor, inputs: tf.Tensor, initial_state: tf.Tensor, reverse: bool
) -> tf.Tensor:
    """The scan in a logarithmic number of steps, with twice the arithmetic.

    Two steps in one are again a step of a linear scan: one of half the length finds
    every second state, and the others follow from these. (`associative_scan` of
    Keras does that too, but not under XLA.)
    """
    if reverse:
        flipped = (tf.reverse(x, [1]) for x in (decay, inputs))
        return tf.reverse(_halving(*flipped, initial_state, False), [1])
    time, units = inputs.shape[1:]
    if time == 1:
        return decay * initial_state[:, None] + inputs
    pairs = time // 2
    d, x = decay[:, 1 : 2 * pairs : 2], inputs[:, 1 : 2 * pairs : 2]
    both = d * decay[:, : 2 * pairs : 2], d * inputs[:, : 2 * pairs : 2] + x
    second = _halving(*both, initial_state, False)
    before = tf.concat([initial_state[:, None], second], axis=1)
    first = decay[:, ::2] * before[:, : time - pairs] + inputs[:, ::2]
    # In turns; of an odd number of states the last is one of the first kind.
    states = tf.stack([first[:, :pairs], second], axis=2)
    units = tf.shape(inputs)[2] if units is None else units
    states = tf.reshape(states, (-1, 2 * pairs, units))
    return tf.concat([states, first[:, pairs:]], axis=1)


def _sequential(
    decay: tf.Tensor, inputs: tf.Tensor, initial_state: tf.Tensor, reverse: bool
) -> tf.Tensor:
    decay, inputs = (tf.transpose(x, [1, 0, 2]) for x in (decay, inputs))
    return tf.transpose(_steps(decay, inputs, initial_state, reverse), [1, 0, 2])


def _steps(
    decay: tf.Tensor, inputs: tf.Tensor, initial_state: tf.Tensor, reverse: bool
) -> tf.Tensor:
    """Time-major scan, one step at a time."""
    time = tf.shape(inputs)[0]
    # XLA needs the shape of an element, which a state of unknown batch lacks.
    states = tf.TensorArray(
        inputs.dtype, size=time, element_shape=inputs.shape[1:], clear_after_read=False
    )

    def step(n: tf.Tensor, state: tf.Tensor, states: tf.TensorArray) -> tuple:
        t = time - 1 - n if reverse else n
        state = decay[t] * state + inputs[t]
        return n + 1, state, states.write(t, state)

    _, _, states = tf.while_loop(
        lambda n, *_: n < time,
        step,
        (0, tf.ensure_shape(initial_state, inputs.shape[1:]), states),
        maximum_iterations=time,
    )
    return states.stack()


def _blocked(
    decay: tf.Tensor, inputs: tf.Tensor, initial_state: tf.Tensor, reverse: bool
) -> tf.Tensor:
    """The scan in as many blocks as a block has steps: see `ops/blocks.py`."""
    sizes = zip(inputs.shape, tf.unstack(tf.shape(inputs)), strict=True)
    batch, time, units = (n if known is None else known for known, n in sizes)
    length = tf.cast(tf.math.ceil(tf.sqrt(tf.cast(time, tf.float32))), tf.int32)
    blocks = -(-time // length)
    # Padding lies behind the last step in scan order.
    rest = [blocks * length - time, 0] if reverse else [0, blocks * length - time]

    def in_blocks(sequence: tf.Tensor) -> tf.Tensor:
        sequence = tf.pad(sequence, [[0, 0], rest, [0, 0]])
        sequence = tf.reshape(sequence, (batch, blocks, length, units))
        return tf.transpose(sequence, [2, 1, 0, 3])

    decay, inputs = in_blocks(decay), in_blocks(inputs)
    zeros = tf.zeros((blocks, batch, units), inputs.dtype)
    states = _steps(decay, inputs, zeros, reverse)
    products = _steps(decay, tf.zeros_like(inputs), zeros + 1, reverse)
    last = 0 if reverse else -1
    ends = _steps(products[last], states[last], initial_state, reverse)
    if reverse:
        carried = tf.concat([ends[1:], initial_state[None]], axis=0)
    else:
        carried = tf.concat([initial_state[None], ends[:-1]], axis=0)
    states = tf.transpose(states + products * carried, [2, 1, 0, 3])
    states = tf.reshape(states, (batch, blocks * length, units))
    return states[:, rest[0] : rest[0] + time]


@functools.cache
def _as_graph(scan: Callable) -> Callable:
    # Traced anew for a few shapes only, then for shapes of unknown sizes.
    return tf.function(scan, reduce_retracing=True, autograph=False)


def pool(
    gates: tf.Tensor,
    initial_state: tf.Tensor,
    update_scale: tf.Tensor | float | None,
    pooling: str,
    activate: bool,
) -> tuple[tf.Tensor, tf.Tensor]:
    accumulator = _accumulator(gates.dtype)
    if isinstance(update_scale, tf.Tensor):
        update_scale = tf.cast(update_scale, accumulator)

    @tf.custom_gradient
    def fused(
        gates: tf.Tensor, initial_state: tf.Tensor
    ) -> tuple[tuple[tf.Tensor, tf.Tensor], Callable]:
        outputs, cells = _run(
            _pool, gates, initial_state, update_scale, pooling, activate
        )
        for sequence in (outputs, cells):
            sequence.set_shape((*gates.shape[:2], None))

        def gradient(d_outputs: tf.Tensor, d_last: tf.Tensor) -> tuple:
            return _run(
                _pool_gradient, gates, initial_state, update_scale, pooling, activate,
                cells, d_outputs, d_last,
            )  # fmt: skip

        return (outputs, cells[:, -1]), gradient

    return fused(gates, initial_state)


def _pool(
    gates: tf.Tensor,
    initial_state: tf.Tensor,
    update_scale: tf.Tensor | float | None,
    pooling: str,
    activate: bool,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Outputs and cell states."""
    z, f, o, i = _activations(gates, pooling, activate)
    decay = _decay(f, update_scale)
    inputs = z - decay * z if i is None else _times(update_scale, i * z)
    state = tf.cast(initial_state, z.dtype)
    cells = _linear_scan(decay, inputs, state, reverse=False)
    outputs = cells if o is None else o * cells
    return tf.cast(outputs, gates.dtype), cells


def _pool_gradient(
    gates: tf.Tensor,
    initial_state: tf.Tensor,
    update_scale: tf.Tensor | float | None,
    pooling: str,
    activate: bool,
    cells: tf.Tensor,
    d_outputs: tf.Tensor,
    d_last: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    # The activations are recomputed: only what cannot be is kept. (A graph finds
    # them to be those of the forward pass, and keeps them in place of the gates.)
    d_outputs = tf.cast(d_outputs, cells.dtype)
    z, f, o, i = _activations(gates, pooling, activate)
    decay = _decay(f, update_scale)
    # A graph runs what it can as soon as it can, and the results take memory from
    # then on: nothing here may begin before the forward pass has ended, nor what
    # needs no adjoint before there is one.
    with tf.control_dependencies([cells, d_outputs]):
        d_cells = d_outputs if o is None else d_outputs * o
        adjoint = _adjoint(decay, d_cells, reverse=False, last=d_last)

    with tf.control_dependencies([adjoint]):
        state = tf.cast(initial_state, cells.dtype)
        previous = _previous(cells, state, reverse=False)
        if i is None:
            d_z = adjoint - adjoint * decay
            d_f = _times(update_scale, adjoint * (previous - z))
            others = [(f, d_f)]
        else:
            kept = _times(update_scale, adjoint)
            d_z = kept * i
            others = [(f, kept * previous)]
        if o is not None:
            others.append((o, d_outputs * cells))
        if i is not None:
            others.append((i, kept * z))
        if activate:
            d_z = tf.raw_ops.TanhGrad(y=z, dy=d_z)
            others = [(y, tf.raw_ops.SigmoidGrad(y=y, dy=dy)) for y, dy in others]
        d_gates = tf.concat([d_z, *(dy for _, dy in others)], axis=-1)
        d_initial = decay[:, 0] * adjoint[:, 0]
    return tf.cast(d_gates, gates.dtype), tf.cast(d_initial, initial_state.dtype)


def _times(update_scale: tf.Tensor | float | None, x: tf.Tensor) -> tf.Tensor:
    return x if update_scale is None else update_scale * x


def _decay(f: tf.Tensor, update_scale: tf.Tensor | float | None) -> tf.Tensor:
    return f if update_scale is None else 1 - update_scale * (1 - f)


def _activations(gates: tf.Tensor, pooling: str, activate: bool) -> tuple:
    """The gates z, f, o, i in the accumulator's dtype, None where there is none."""
    packed = tf.cast(gates, _accumulator(gates.dtype))
    z, *others = tf.split(packed, len(GATES[pooling]), axis=-1)
    if activate:
        z, others = tf.tanh(z), [tf.sigmoid(gate) for gate in others]
    return z, *others, *[None] * (3 - len(others))


def causal_conv(
    inputs: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor | None
) -> tf.Tensor:
    if _has_gpu():
        outputs = tf.nn.conv1d(inputs, kernel, stride=1, padding="VALID")
    else:
        outputs = _convolution(inputs, kernel)
    if bias is None:
        return outputs
    # The faster one sums the bias's gradient in half precision, if it has that.
    half = outputs.dtype in (tf.float16, tf.bfloat16)
    return outputs + bias if half else tf.nn.bias_add(outputs, bias)


@tf.custom_gradient
def _convolution(inputs: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """TensorFlow's but for the kernel's gradient: on a CPU products of matrices are
    faster, in bfloat16 twice as fast."""

    def gradient(d_outputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        d_inputs = tf.nn.conv1d_transpose(
            d_outputs, kernel, tf.shape(inputs), strides=1, padding="VALID"
        )
        time, rows = tf.shape(d_outputs)[1], _rows(d_outputs)
        taps = (inputs[:, j : j + time] for j in range(kernel.shape[0]))
        return d_inputs, tf.stack(
            [tf.matmul(_rows(tap), rows, transpose_a=True) for tap in taps]
        )

    return tf.nn.conv1d(inputs, kernel, stride=1, padding="VALID"), gradient


def _rows(sequences: tf.Tensor) -> tf.Tensor:
    return tf.reshape(sequences, (-1, sequences.shape[-1]))


def conv_pool(
    inputs: tf.Tensor,
    kernel: tf.Tensor,
    bias: tf.Tensor | None,
    initial_state: tf.Tensor,
    update_scale: tf.Tensor | float | None,
    pooling: str,
) -> tuple[tf.Tensor, tf.Tensor]:
    gates = causal_conv(inputs, kernel, bias)
    return pool(gates, initial_state, update_scale, pooling, activate=True)


# XLA makes two passes over the logits of what would be a dozen, with the gradient. (For
# the GPU of a Mac there is no XLA.)
@tf.function(jit_compile=sys.platform != "darwin", reduce_retracing=True)
def cross_entropy(logits: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
    # No `gather`, whose gradient is a scatter: not always deterministic on a GPU.
    is_target = tf.range(tf.shape(logits)[-1]) == tf.cast(targets[..., None], tf.int32)
    picked = tf.reduce_sum(tf.where(is_target, logits, 0), axis=-1)
    losses = tf.reduce_logsumexp(logits, axis=-1) - picked
    # XLA raises no errors.
    return tf.where(tf.reduce_any(is_target, axis=-1), losses, float("nan"))
