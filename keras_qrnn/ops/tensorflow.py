"""TensorFlow: the scan and the poolings, with gradients by hand.

The recurrence is written in five ways, and `_scan` chooses:

- `_in_place` under XLA;
- `_halving` on a GPU and for LiteRT, if the number of steps is known;
- `_doubling` for LiteRT, if the number of steps is unknown;
- `_blocked` on a GPU, if the number of steps is unknown, and on a CPU for small steps;
- `_sequential` for the rest.

The scan's gradient is `_scan_gradient`, a pooling's is `_pool_gradient`.
`ops/tensorflow_graph.py` has XLA compile what pays, and frees a gradient together with
its graph. Shapes and dtypes are those of `Backend` in `ops/backend.py`.
"""

import sys
from collections.abc import Callable

import tensorflow as tf
from keras import ops

from keras_qrnn.ops import equations
from keras_qrnn.ops.blocks import REACH, ROUNDS, is_cut_in_blocks
from keras_qrnn.ops.equations import GATES, Gates
from keras_qrnn.ops.tensorflow_graph import (
    LITERT,
    as_graph,
    gradient_by_hand,
    has_gpu,
    is_compiled,
    is_traced_by,
    run,
)


def linear_scan(
    decay: tf.Tensor, inputs: tf.Tensor, initial_state: tf.Tensor, reverse: bool
) -> tf.Tensor:
    # A custom gradient takes no variable, and `tf.cast` returns a variable unchanged if
    # it has the dtype already.
    decay, inputs, initial_state = map(
        tf.convert_to_tensor, (decay, inputs, initial_state)
    )
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
    @gradient_by_hand
    def scan(
        decay: tf.Tensor, inputs: tf.Tensor, initial_state: tf.Tensor
    ) -> tuple[tf.Tensor, Callable]:
        states = run(_scan, decay, inputs, initial_state, reverse)
        # A function traced for any batch size returns states of unknown batch size.
        states.set_shape(inputs.shape)

        def gradient(d_states: tf.Tensor) -> tuple[tf.Tensor, ...]:
            return run(_scan_gradient, decay, initial_state, states, d_states, reverse)

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
        adjoint * _shifted(states, initial_state, reverse),
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
    """`a[t] = gradient[t] + decay[t + 1] * a[t + 1]`: a scan in the other direction.

    Args:
        decay: `(batch, time, units)`, the decays of the scan.
        gradient: of the shape of `decay`, the gradient by the states.
        reverse: the direction of the scan, not of the adjoint.
        last: `(batch, units)`, added to the gradient by the last state. None for 0.
        scan: the function that runs the recurrence.
    """
    ones = tf.ones_like(decay[:, 0])
    last = tf.zeros_like(ones) if last is None else last
    following = _shifted(decay, ones, not reverse)
    return scan(following, gradient, last, not reverse)


def _shifted(sequence: tf.Tensor, initial: tf.Tensor, reverse: bool) -> tf.Tensor:
    """`sequence` shifted by one step in scan order. The first step is `initial`."""
    if reverse:
        return tf.concat([sequence[:, 1:], initial[:, None]], axis=1)
    return tf.concat([initial[:, None], sequence[:, :-1]], axis=1)


def _scan(
    decay: tf.Tensor, inputs: tf.Tensor, initial_state: tf.Tensor, reverse: bool
) -> tf.Tensor:
    decay, inputs = (_of_batch(initial_state, x) for x in (decay, inputs))
    batch, time, units = inputs.shape
    width = None if None in (batch, units) else batch * units
    if is_compiled(inputs):
        scan = _in_place
    elif time is not None and (has_gpu() or is_traced_by(LITERT)):
        scan = _halving
    elif is_traced_by(LITERT):
        scan = _doubling
    else:
        # A GPU launches kernels for every step: fewer steps are faster.
        cut = has_gpu() or is_cut_in_blocks(time, width)
        scan = _blocked if cut else _sequential
        # An eager loop would dispatch every step from Python: it runs as a graph.
        scan = as_graph(scan) if tf.executing_eagerly() else scan
    states = scan(decay, inputs, initial_state, reverse)
    return tf.ensure_shape(states, (batch, time, units))


def _of_batch(state: tf.Tensor, sequences: tf.Tensor) -> tf.Tensor:
    """`sequences` with the batch size of `state`, which may know it alone.

    A loop must not change the shape of its state.
    """
    batch = state.shape[0]
    if sequences.shape[0] is not None or batch is None:
        return tf.ensure_shape(sequences, (batch, None, None))
    # A check of the state names the argument. It comes first.
    with tf.control_dependencies([state]):
        return tf.ensure_shape(sequences, (batch, None, None))


def _in_place(
    decay: tf.Tensor, inputs: tf.Tensor, initial_state: tf.Tensor, reverse: bool
) -> tf.Tensor:
    """The scan one step at a time, for XLA. It writes the states over the inputs.

    TensorFlow cannot differentiate this loop, so it has a gradient by hand. Only a
    second derivative uses it: the gradient in `_linear_scan` reads the states, and this
    loop makes them.
    """

    @gradient_by_hand
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

    Two steps of a linear scan combine into one step. A scan of these pairs has half the
    length and finds every second state. One more step finds the others.
    `keras.ops.associative_scan` does the same, but does not run under XLA.
    """
    if reverse:
        decay, inputs = (tf.reverse(x, [1]) for x in (decay, inputs))
        return tf.reverse(_halving(decay, inputs, initial_state, False), [1])
    time, units = inputs.shape[1:]
    if time == 1:
        return decay * initial_state[:, None] + inputs
    pairs = time // 2
    d, x = decay[:, 1 : 2 * pairs : 2], inputs[:, 1 : 2 * pairs : 2]
    both = d * decay[:, : 2 * pairs : 2], d * inputs[:, : 2 * pairs : 2] + x
    second = _halving(*both, initial_state, False)
    previous = tf.concat([initial_state[:, None], second], axis=1)
    first = decay[:, ::2] * previous[:, : time - pairs] + inputs[:, ::2]
    # The states of `first` and `second` take turns. An odd number of states ends with
    # one of `first`.
    states = tf.stack([first[:, :pairs], second], axis=2)
    units = tf.shape(inputs)[2] if units is None else units
    states = tf.reshape(states, (-1, 2 * pairs, units))
    return tf.concat([states, first[:, pairs:]], axis=1)


def _doubling(
    decay: tf.Tensor, inputs: tf.Tensor, initial_state: tf.Tensor, reverse: bool
) -> tf.Tensor:
    """The scan of a sequence of up to `REACH - 1` steps, without a loop or a list.

    Later states are NaN: see `REACH` in `ops/blocks.py`.
    """
    if reverse:
        decay, inputs = (tf.reverse(x, [1]) for x in (decay, inputs))
        return tf.reverse(_doubling(decay, inputs, initial_state, False), [1])
    product = tf.concat([tf.zeros_like(initial_state)[:, None], decay], axis=1)
    states = tf.concat([initial_state[:, None], inputs], axis=1)
    step = tf.range(tf.shape(states)[1])
    for n in range(ROUNDS):
        earlier = tf.maximum(step - 2**n, 0)
        states += product * tf.gather(states, earlier, axis=1)
        product *= tf.gather(product, earlier, axis=1)
    in_reach = tf.reshape(step < REACH, (1, -1, 1))
    return tf.where(in_reach, states, tf.constant(float("nan"), states.dtype))[:, 1:]


def _sequential(
    decay: tf.Tensor, inputs: tf.Tensor, initial_state: tf.Tensor, reverse: bool
) -> tf.Tensor:
    decay, inputs = (tf.transpose(x, [1, 0, 2]) for x in (decay, inputs))
    return tf.transpose(_steps(decay, inputs, initial_state, reverse), [1, 0, 2])


def _steps(
    decay: tf.Tensor, inputs: tf.Tensor, initial_state: tf.Tensor, reverse: bool
) -> tf.Tensor:
    """The scan one step at a time, on sequences `(time, batch, units)`."""
    time = tf.shape(inputs)[0] if inputs.shape[0] is None else inputs.shape[0]
    # XLA needs the shape of one step. A state of unknown batch size does not give it.
    states = tf.TensorArray(
        inputs.dtype, size=time, element_shape=inputs.shape[1:], clear_after_read=False
    )

    def step(n: tf.Tensor, state: tf.Tensor, states: tf.TensorArray) -> tuple:
        t = time - 1 - n if reverse else n
        following = decay[t] * state + inputs[t]
        following.set_shape(state.shape)  # `inputs` may know less of the shape
        return n + 1, following, states.write(t, following)

    _, _, states = tf.while_loop(
        lambda n, *_: n < time,
        step,
        (0, tf.ensure_shape(initial_state, inputs.shape[1:]), states),
    )
    return states.stack()


def _blocked(
    decay: tf.Tensor, inputs: tf.Tensor, initial_state: tf.Tensor, reverse: bool
) -> tf.Tensor:
    """The scan in `sqrt(time)` blocks of `sqrt(time)` steps: see `ops/blocks.py`."""
    sizes = zip(inputs.shape, tf.unstack(tf.shape(inputs)), strict=True)
    batch, time, units = (n if known is None else known for known, n in sizes)
    length = tf.cast(tf.math.ceil(tf.sqrt(tf.cast(time, tf.float32))), tf.int32)
    blocks = -(-time // length)
    # The padding comes after the last step in scan order.
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
        starts = tf.concat([ends[1:], initial_state[None]], axis=0)
    else:
        starts = tf.concat([initial_state[None], ends[:-1]], axis=0)
    states = tf.transpose(states + products * starts, [2, 1, 0, 3])
    states = tf.reshape(states, (batch, blocks * length, units))
    return states[:, rest[0] : rest[0] + time]


def pool(
    gates: tf.Tensor,
    initial_state: tf.Tensor,
    update_scale: tf.Tensor | float | None,
    pooling: str,
    activate: bool,
) -> tuple[tf.Tensor, tf.Tensor]:
    gates, initial_state = map(tf.convert_to_tensor, (gates, initial_state))
    if tf.is_tensor(update_scale):
        update_scale = tf.cast(
            tf.convert_to_tensor(update_scale), _accumulator(gates.dtype)
        )
    channels = gates.shape[2]
    units = channels and channels // len(GATES[pooling])

    @gradient_by_hand
    def fused(
        gates: tf.Tensor, initial_state: tf.Tensor
    ) -> tuple[tuple[tf.Tensor, tf.Tensor], Callable]:
        outputs, cells = run(
            _pool, gates, initial_state, update_scale, pooling, activate
        )
        for sequence in (outputs, cells):
            sequence.set_shape((*gates.shape[:2], units))

        def gradient(d_outputs: tf.Tensor, d_last: tf.Tensor) -> tuple:
            return run(
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
    """The outputs and the cell states of all steps, each `(batch, time, units)`.

    The outputs have the dtype of `gates`, the cell states the accumulator's.
    """
    activated = _activated_gates(gates, pooling, activate)
    decay, inputs = equations.decay_and_inputs(activated, update_scale)
    state = tf.cast(initial_state, inputs.dtype)
    cells = _linear_scan(decay, inputs, state, reverse=False)
    outputs = equations.outputs_of(activated, cells)
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
    """The gradients by `gates` and `initial_state`, of their shapes and dtypes."""
    # The activations are computed again: in eager mode only the gates are kept. A graph
    # sees that they are the same as in the forward pass, and keeps them instead.
    d_outputs = tf.cast(d_outputs, cells.dtype)
    activated = _activated_gates(gates, pooling, activate)
    decay, _ = equations.decay_and_inputs(activated, update_scale)
    # A graph runs an operation as soon as it has the arguments, and the result then
    # takes memory. The first block waits for the end of the forward pass, the second
    # for the adjoint: so less memory is in use at a time.
    with tf.control_dependencies([cells, d_outputs]):
        d_cells = equations.outputs_of(activated, d_outputs)
        adjoint = _adjoint(decay, d_cells, reverse=False, last=d_last)

    with tf.control_dependencies([adjoint]):
        state = tf.cast(initial_state, cells.dtype)
        previous = _shifted(cells, state, reverse=False)
        d_gates = equations.gate_gradients(
            activated, update_scale, cells, previous, d_outputs, adjoint
        )
        if activate:
            d_gates = _logit_gradients(activated, d_gates)
        d_packed = tf.concat(d_gates, axis=-1)
        d_initial = decay[:, 0] * adjoint[:, 0]
    return tf.cast(d_packed, gates.dtype), tf.cast(d_initial, initial_state.dtype)


def _logit_gradients(gates: Gates, d_gates: list[tf.Tensor]) -> list[tf.Tensor]:
    """`equations.logit_gradients` with one TensorFlow operation a gate, not three."""
    z, *sigmoids = (gate for gate in gates if gate is not None)
    d_z, *d_sigmoids = d_gates
    pairs = zip(sigmoids, d_sigmoids, strict=True)
    return [
        tf.raw_ops.TanhGrad(y=z, dy=d_z),
        *(tf.raw_ops.SigmoidGrad(y=y, dy=dy) for y, dy in pairs),
    ]


def _activated_gates(packed: tf.Tensor, pooling: str, activate: bool) -> Gates:
    """Splits packed gates, and activates them if asked to. In the accumulator's dtype.

    Args:
        packed: `(batch, time, len(GATES[pooling]) * units)`.
        pooling: a key of `GATES`.
        activate: whether tanh and sigmoid are applied.
    """
    packed = tf.cast(packed, _accumulator(packed.dtype))
    z, f, *others = tf.split(packed, len(GATES[pooling]), axis=-1)
    if activate:
        return Gates(tf.tanh(z), *map(tf.sigmoid, (-f, *others)))
    return Gates(z, 1 - f, *others)


def causal_conv(
    inputs: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor | None
) -> tf.Tensor:
    inputs, kernel = map(tf.convert_to_tensor, (inputs, kernel))
    window, features, channels = kernel.shape
    inputs = tf.ensure_shape(inputs, (None, None, features))
    if inputs.shape[0] == 0:
        # TensorFlow's convolution would return the shape of the inputs, and a reshape
        # between known sizes is optimized away.
        time = tf.shape(inputs)[1] - window + 1
        taps = (inputs[:, j : j + time] @ kernel[j] for j in range(window))
        outputs = tf.add_n(list(taps))
    elif has_gpu():
        outputs = tf.nn.conv1d(inputs, kernel, stride=1, padding="VALID")
    else:
        outputs = _convolution(inputs, kernel)
    if inputs.shape[0] is None:
        # For an empty batch, TensorFlow's convolution returns the shape of the inputs.
        # This reshape mends the shape. LiteRT needs static sizes for it. With static
        # sizes XLA fails on an empty batch, so all others read them at run time.
        sizes = ops.shape(inputs) if is_traced_by(LITERT) else tf.shape(inputs)
        batch, time = sizes[0], sizes[1]
        outputs = tf.reshape(outputs, (batch, time - window + 1, channels))
    return outputs if bias is None else _add_bias(outputs, tf.convert_to_tensor(bias))


def _add_bias(outputs: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """`outputs + bias`. In half precision the bias's gradient is summed in float32.

    Args:
        outputs: `(batch, time, channels)`.
        bias: `(channels,)` or `(batch, channels)`.
    """
    is_shared = bias.shape.rank == 1
    if outputs.dtype not in (tf.float16, tf.bfloat16):
        if is_shared:
            return tf.nn.bias_add(outputs, bias)
        return outputs + bias[:, None]

    @gradient_by_hand
    def add(outputs: tf.Tensor, bias: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        def gradient(d_outputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            axes = [0, 1] if is_shared else [1]
            d_bias = tf.reduce_sum(tf.cast(d_outputs, tf.float32), axis=axes)
            return d_outputs, tf.cast(d_bias, bias.dtype)

        return outputs + bias[..., None, :], gradient

    return add(outputs, bias)


@gradient_by_hand
def _convolution(inputs: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """TensorFlow's convolution with another gradient by the kernel.

    The gradient is one matrix product for each step of the window. On a CPU it is
    faster than TensorFlow's, in bfloat16 twice as fast.
    """

    def gradient(d_outputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        d_inputs = tf.nn.conv1d_transpose(
            d_outputs, kernel, tf.shape(inputs), strides=1, padding="VALID"
        )
        time, d_matrix = tf.shape(d_outputs)[1], _matrix(d_outputs)
        taps = (inputs[:, j : j + time] for j in range(kernel.shape[0]))
        return d_inputs, tf.stack(
            [tf.matmul(_matrix(tap), d_matrix, transpose_a=True) for tap in taps]
        )

    return tf.nn.conv1d(inputs, kernel, stride=1, padding="VALID"), gradient


def _matrix(sequences: tf.Tensor) -> tf.Tensor:
    """`sequences` with batch and time as one axis."""
    return tf.reshape(sequences, (-1, sequences.shape[-1]))


def conv_pool(
    inputs: tf.Tensor,
    kernel: tf.Tensor,
    bias: tf.Tensor | None,
    initial_state: tf.Tensor,
    update_scale: tf.Tensor | float | None,
    pooling: str,
) -> tuple[tf.Tensor, tf.Tensor]:
    # In half precision a step would be rounded in other places than in a sequence.
    exact = inputs.dtype in (tf.float32, tf.float64)
    if inputs.shape[1] == kernel.shape[0] and exact:
        return _one_step(inputs, kernel, bias, initial_state, update_scale, pooling)
    gates = causal_conv(inputs, kernel, bias)
    return pool(gates, initial_state, update_scale, pooling, activate=True)


def _one_step(
    inputs: tf.Tensor,
    kernel: tf.Tensor,
    bias: tf.Tensor | None,
    initial_state: tf.Tensor,
    update_scale: tf.Tensor | float | None,
    pooling: str,
) -> tuple[tf.Tensor, tf.Tensor]:
    """`conv_pool` on one step: a product, no loop, the gradient is TensorFlow's own."""
    window, features, channels = kernel.shape
    seen = tf.reshape(inputs, (-1, window * features))
    seen.set_shape((inputs.shape[0], None))
    gates = tf.matmul(seen, tf.reshape(kernel, (-1, channels)))[:, None]
    if bias is not None:
        gates = _add_bias(gates, tf.convert_to_tensor(bias))
    activated = _activated_gates(gates[:, 0], pooling, activate=True)
    if tf.is_tensor(update_scale):
        update_scale = tf.cast(update_scale, activated.z.dtype)[:, 0]
    state = tf.cast(initial_state, activated.z.dtype)
    outputs, cell = equations.one_step(activated, state, update_scale)
    # A loop must not change the shape of its state, which may know the batch size
    # alone. With `ensure_shape` TensorFlow would conclude the batch size of the inputs,
    # and drop the layer's check of it.
    for each in (outputs, cell):
        each.set_shape(state.shape)
    return tf.cast(outputs, gates.dtype)[:, None], cell


# XLA passes over the logits twice, gradient included. Single operations would pass over
# them a dozen times. A Mac's GPU has no XLA.
@tf.function(jit_compile=sys.platform != "darwin", reduce_retracing=True)
def cross_entropy(logits: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
    # `gather` would pick the logits, but its gradient is a scatter, which is not always
    # deterministic on a GPU.
    is_target = tf.range(tf.shape(logits)[-1]) == tf.cast(targets[..., None], tf.int32)
    picked = tf.reduce_sum(tf.where(is_target, logits, 0), axis=-1)
    losses = tf.reduce_logsumexp(logits, axis=-1) - picked
    # XLA raises no errors: a target that is no class gives NaN.
    return tf.where(tf.reduce_any(is_target, axis=-1), losses, float("nan"))
