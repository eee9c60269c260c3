"""TensorFlow: XLA, graphs of unknown sizes, memory, half precision."""

import sys
from functools import partial

import keras
import numpy as np
import pytest

if keras.config.backend() != "tensorflow":
    pytest.skip("functions of TensorFlow", allow_module_level=True)

import tensorflow as tf
from keras import ops

import keras_qrnn
from keras_qrnn import QRNN, AttentionQRNN, linear_scan
from keras_qrnn.ops import tensorflow as active
from keras_qrnn.ops.equations import GATES
from keras_qrnn.ops.tensorflow_graph import has_gpu
from tests.assertions import assert_close
from tests.gradients import second_gradients, value_and_gradients

HAS_XLA = sys.platform != "darwin" and not has_gpu()


def compiled_functions(graph):
    """The numbers of nodes of what XLA compiles in a graph."""
    functions = graph.as_graph_def().library.function
    return [len(f.node_def) for f in functions if f.attr["_XlaMustCompile"].b]


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("window", [1, 3])
def test_convolution_equals_tensorflows(window, known):
    """Values, first and second gradients. The graph knows the sizes or not."""
    rng = np.random.default_rng(window)
    shapes = [(2, 7, 3), (window, 3, 8)]
    arrays = [rng.normal(size=shape).astype("float32") for shape in shapes]

    def loss(convolution):
        return lambda *tensors: ops.sum(ops.sin(convolution(*tensors)))

    signature = [tf.TensorSpec((None, None, 3)), tf.TensorSpec(shapes[1])]
    own = tf.function(active._convolution, input_signature=None if known else signature)
    plain = partial(tf.nn.conv1d, stride=1, padding="VALID")
    (value, first), (expected_value, expected_first) = (
        value_and_gradients(loss(f), arrays) for f in (own, plain)
    )
    second, expected_second = (second_gradients(loss(f), arrays) for f in (own, plain))
    assert_close("value", value, expected_value)
    for name, n in (("inputs", 0), ("kernel", 1)):
        assert_close(f"d_{name}", first[n], expected_first[n])
        assert_close(f"second derivative by {name}", second[n], expected_second[n])


def test_xla_compiles_what_has_a_known_length():
    def compiled(time):
        scan = tf.function(lambda x: active.linear_scan(x, x, x[:, 0], False))
        traced = scan.get_concrete_function(tf.TensorSpec((None, time, 3)))
        return compiled_functions(traced.graph)

    assert compiled(None) == []
    assert bool(compiled(8)) == HAS_XLA
    assert compiled(8) == compiled(512)  # what is compiled does not grow


@pytest.mark.parametrize("reverse", [False, True])
def test_scan_by_doubling(reverse, monkeypatch):
    """It equals the scan step by step as far as it reaches. Later states are NaN."""
    rng = np.random.default_rng(0)
    decay = rng.uniform(0, 1, (2, 21, 3)).astype("float32")
    inputs = rng.normal(size=(2, 21, 3)).astype("float32")
    arguments = *map(tf.constant, (decay, inputs, inputs[:, 0])), reverse
    want = active._sequential(*arguments).numpy()
    assert_close("states", active._doubling(*arguments), want)
    monkeypatch.setattr(active, "ROUNDS", 4)
    monkeypatch.setattr(active, "REACH", 16)
    states = active._doubling(*arguments).numpy()
    if reverse:
        states, want = states[:, ::-1], want[:, ::-1]
    assert_close("states in reach", states[:, :15], want[:, :15])
    assert np.isnan(states[:, 15:]).all()


def test_what_is_compiled_is_freed_with_its_graph():
    """A cache in the module would keep what every model has traced."""
    import gc
    import weakref

    def trace(units):
        def loss(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                value = ops.sum(active.pool(x, x[:, 0, :units], None, "f", True)[0])
            return tape.gradient(value, x)

        traced = tf.function(loss).get_concrete_function(
            tf.TensorSpec((2, 4, 2 * units))
        )
        assert bool(compiled_functions(traced.graph)) == HAS_XLA
        return weakref.ref(traced.graph)

    graphs = [trace(units) for units in (2, 3, 4)]
    gc.collect()
    assert [graph() for graph in graphs] == [None] * 3


def test_second_gradients_of_two_batches_in_one_graph():
    """A function compiled for any batch size also runs on a known size."""
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=s).astype("float32") for s in ((2, 9, 6), (2, 3))]

    def loss(gates, state):
        outputs, last = active.pool(gates, state, None, "f", activate=True)
        return ops.sum(outputs**2) + ops.sum(last**3)

    def twice(gates, state):
        batch = tf.random.uniform((), 2, 3, tf.int32)  # unknown to the graph
        return loss(gates[:batch], state[:batch]) + loss(gates, state)

    got, want = second_gradients(twice, arrays), second_gradients(loss, arrays)
    with pytest.raises(AssertionError):
        assert_close("second derivative by gates", got[0], want[0])
    both = second_gradients(lambda *a: 2 * loss(*a), arrays)
    for name, g, w in zip(("gates", "state"), got, both, strict=True):
        assert_close(f"second derivative by {name}", g, w)


@pytest.mark.parametrize("of_each_sequence", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_gradient_of_the_bias_is_a_sum_in_float32(dtype, compiled, of_each_sequence):
    rows, time, channels = 8, 512, 4
    inputs, kernel = tf.zeros((rows, time, 1), dtype), tf.zeros((1, 1, channels), dtype)
    bias = tf.zeros((rows, channels) if of_each_sequence else (channels,), dtype)
    above = np.random.default_rng(1).uniform(0, 1, (rows, time, channels))
    above = tf.cast(above, dtype)

    @tf.function(jit_compile=compiled and HAS_XLA)
    def gradient(bias):
        with tf.GradientTape() as tape:
            tape.watch(bias)
            outputs = active.causal_conv(inputs, kernel, bias)
        return tape.gradient(outputs, bias, above)

    expected = np.asarray(tf.cast(above, tf.float64))
    expected = expected.sum(1 if of_each_sequence else (0, 1))
    tolerance = {"float16": 2.0**-10, "bfloat16": 2.0**-8}[dtype]
    assert_close("d_bias", gradient(bias), expected, tolerance)


ARGUMENTS = {
    "linear_scan": (("decay", 3), ("inputs", 3), ("initial_state", 2)),
    "f_pool": (("z", 3), ("f", 3), ("initial_state", 2)),
    "fo_pool": (("z", 3), ("f", 3), ("o", 3), ("initial_state", 2)),
    "ifo_pool": (("z", 3), ("f", 3), ("o", 3), ("i", 3), ("initial_state", 2)),
}


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", ARGUMENTS)
def test_every_argument_may_be_a_variable(name, batch, trainable):
    """Values and gradients, eagerly and in a graph."""
    rng = np.random.default_rng(2)
    shapes = {3: (batch, 4, 3), 2: (batch, 3)}
    arrays = {
        argument: rng.uniform(size=shapes[rank]).astype("float32")
        for argument, rank in ARGUMENTS[name]
    }
    variables = {n: tf.Variable(a, trainable=trainable) for n, a in arrays.items()}

    def gradients(arguments):
        with tf.GradientTape() as tape:
            tape.watch(arguments)
            results = tf.nest.flatten(getattr(keras_qrnn, name)(**arguments))
            total = tf.add_n([tf.reduce_sum(tf.sin(x)) for x in results])
        return tape.gradient(total, arguments)

    expected = gradients({n: tf.constant(a) for n, a in arrays.items()})
    for run in (gradients, tf.function(gradients, autograph=False)):
        got = run(variables)
        for argument, want in expected.items():
            assert_close(f"d_{argument}", got[argument], want)


@pytest.mark.parametrize("time", [4, None])
@pytest.mark.parametrize("pooling", GATES)
def test_graphs_that_know_no_sizes(pooling, time):
    """A dataset of unknown shapes gives neither the batch size nor the units."""
    rng = np.random.default_rng(3)
    channels = len(GATES[pooling]) * 3
    gates = rng.normal(size=(2, 4, channels)).astype("float32")
    state = rng.normal(size=(2, 3)).astype("float32")

    def step(gates, state):
        with tf.GradientTape() as tape:
            tape.watch((gates, state))
            outputs, last = active.pool(gates, state, 0.75, pooling, True)
            total = tf.reduce_sum(tf.sin(outputs)) + tf.reduce_sum(last**2)
        return outputs, last, *tape.gradient(total, (gates, state))

    specs = [tf.TensorSpec((None, time, None)), tf.TensorSpec((None, None))]
    unknown = tf.function(step, input_signature=specs, autograph=False)
    got, want = unknown(gates, state), step(*map(tf.constant, (gates, state)))
    names = ("outputs", "last", "d_gates", "d_state")
    for name, g, w in zip(names, got, want, strict=True):
        assert_close(name, g, w)


def test_shapes_that_a_graph_knows_stay_known():
    """AutoGraph's loops refuse a state whose shape is forgotten."""

    @tf.function(input_signature=[tf.TensorSpec((4, None, 6))], autograph=False)
    def run(inputs):
        kernel, bias = tf.zeros((2, 6, 10)), tf.zeros((4, 10))
        outputs, last = active.conv_pool(
            inputs, kernel, bias, tf.zeros((4, 5)), None, "f"
        )
        assert tuple(outputs.shape) == (4, None, 5)
        assert tuple(last.shape) == (4, 5)
        return outputs

    assert run(tf.zeros((4, 4, 6))).shape == (4, 3, 5)


@pytest.mark.parametrize("pooling", GATES)
def test_one_step_in_a_graph_of_unknown_batch_size(pooling):
    """In a loop the state's batch size stays known."""
    kernel = tf.ones((1, 2, len(GATES[pooling]) * 3))

    def step(inputs, state):
        return active.conv_pool(inputs, kernel, None, state, None, pooling)[1]

    specs = [tf.TensorSpec((None, 1, 2)), tf.TensorSpec((1, 3))]

    @partial(tf.function, input_signature=specs, autograph=False)
    def decode(inputs, state):
        (state,) = tf.while_loop(
            lambda state: True,
            lambda state: (step(inputs, state),),
            (state,),
            maximum_iterations=2,
        )
        return state

    inputs, state = tf.ones((1, 1, 2)), tf.zeros((1, 3))
    expected = step(inputs, step(inputs, state))
    assert_close("state", decode(inputs, state), expected)


# Arguments of a call: what a graph knows of the shape, and a shape that does not fit
# inputs of 3 rows and 4 steps.
WRONG_SIZES = [
    ("initial_state", (None, 6), (1, 6)),
    ("initial_state", (None, 6), (2, 6)),
    ("previous_output", (None, 6), (1, 6)),
    ("context", (None, 2), (1, 2)),
    ("mask", (None, None), (1, 4)),
    ("mask", (None, None), (3, 1)),
    ("mask", (None, None), (4, 3)),
    ("encoder_outputs", (None, None, 6), (1, 7, 6)),
    ("encoder_mask", (None, None), (1, 7)),
    ("encoder_mask", (None, None), (3, 1)),
]


@pytest.mark.parametrize(("name", "known", "shape"), WRONG_SIZES)
def test_a_graph_checks_sizes_that_it_learns_when_it_runs(name, known, shape):
    """TensorFlow would repeat a row or a step without an error."""
    inputs = tf.zeros((3, 4, 5))
    right = {"encoder_outputs": tf.zeros((3, 7, 6))}
    if name == "context":
        right["context"] = tf.zeros((3, 2))
    if name == "previous_output":
        right["mask"] = tf.ones((3, 4), "bool")
    layer = AttentionQRNN(6, return_sequences=True)
    layer(inputs, **right)
    wrong = tf.ones(shape, "bool" if "mask" in name else "float32")
    specs = [tf.TensorSpec((None, None, 5)), tf.TensorSpec(known, wrong.dtype)]

    @partial(tf.function, input_signature=specs, autograph=False)
    def run(inputs, argument):
        return layer(inputs, **right | {name: argument})

    with pytest.raises(tf.errors.InvalidArgumentError, match=f"Argument `{name}`"):
        run(inputs, wrong)
    if HAS_XLA and name in ("mask", "context"):
        # XLA drops the assertion, and fails at a reshape.
        compiled = tf.function(
            run, input_signature=specs, jit_compile=True, autograph=False
        )
        with pytest.raises(tf.errors.InvalidArgumentError, match="reshape"):
            compiled(inputs, wrong)


@pytest.mark.parametrize(
    ("name", "time"),
    [("context", 4), ("stateful", 4), ("initial_state", 4), ("initial_state", 1)],
)
def test_the_check_of_sizes_comes_before_all_that_could_fail(name, time):
    """The graph knows the 2 rows of a context or of the kept states, but no others.

    Or the one row of a given state, which would be repeated. It gets 3 rows of inputs.
    """
    layer = QRNN(6, stateful=name == "stateful")
    shapes = {"context": (2, 2), "initial_state": (1, 6)}
    given = {name: tf.zeros(shapes[name])} if name in shapes else {}
    context_shape = shapes[name] if name == "context" else None
    layer.build((2, time, 5), context_shape=context_shape)
    specs = [tf.TensorSpec((None, time, 5))]
    run = partial(layer, **given)
    graph = tf.function(run, input_signature=specs, autograph=False)
    message = f"Argument `{name}`|stateful layer must not change.*Expected: 2"
    for _ in range(20):  # a race is not lost each time
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            graph(tf.zeros((3, time, 5)))
    if HAS_XLA:
        compiled = tf.function(
            run, input_signature=specs, autograph=False, jit_compile=True
        )
        operation = f"{name}_must_fit_|stateful_layer_must_not_change"
        with pytest.raises(tf.errors.InvalidArgumentError, match=operation):
            compiled(tf.zeros((3, time, 5)))


def test_the_public_scan_checks_sizes_that_it_learns_when_it_runs():
    specs = [tf.TensorSpec((None, None, 2))] * 2 + [tf.TensorSpec((None, 2))]
    run = tf.function(linear_scan, input_signature=specs, autograph=False)
    inputs, state = tf.ones((3, 4, 2)), tf.ones((3, 2))
    assert run(inputs, inputs, state).shape == (3, 4, 2)
    for decay, first in [(inputs[:1], state), (inputs[:, :1], state)]:
        with pytest.raises(tf.errors.InvalidArgumentError, match="Argument `decay`"):
            run(decay, inputs, first)
    with pytest.raises(tf.errors.InvalidArgumentError, match="`initial_state`"):
        run(inputs, inputs, state[:1])


def test_one_step_checks_the_batch_size_that_it_learns_when_it_runs():
    specs = [tf.TensorSpec((None, 1, 5)), tf.TensorSpec((None, 6))]
    layer = QRNN(6, window=2)
    layer.build((None, 1, 5))

    @partial(tf.function, input_signature=specs, autograph=False)
    def run(inputs, state):
        return layer(inputs, initial_state=state)

    assert run(tf.ones((3, 1, 5)), tf.ones((3, 6))).shape == (3, 6)
    with pytest.raises(tf.errors.InvalidArgumentError, match="`initial_state`"):
        run(tf.ones((3, 1, 5)), tf.ones((1, 6)))


@pytest.mark.parametrize(
    ("rows", "window", "time"), [(None, 1, 6), (None, 3, None), (None, 3, 6), (0, 3, 6)]
)
def test_a_batch_without_rows(rows, window, time):
    """Eagerly, in a graph, and compiled by XLA, with the gradients."""
    layer = QRNN(5, window, return_sequences=True, pooling="ifo")
    layer.build((None, time, 3))
    x = tf.zeros((0, 6, 3))
    assert layer(x).shape == (0, 6, 5)

    def step(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(x))
        variables = [v.value for v in layer.trainable_variables]
        return loss, *tape.gradient(loss, variables)

    specs = [tf.TensorSpec((rows, time, 3))]
    for compiled in {False, HAS_XLA}:
        run = tf.function(step, input_signature=specs, jit_compile=compiled)
        for result in run(x):
            assert_close("result", result, np.zeros(result.shape))


@pytest.mark.parametrize("time", [6, None])
def test_fit_and_predict_meet_a_batch_without_rows(time):
    """A filter leaves such batches. So does a last batch too small for all replicas."""

    def batches():
        for rows in (4, 0, 2):
            yield np.ones((rows, 6, 3), "float32"), np.ones((rows, 5), "float32")

    specs = tf.TensorSpec((None, time, 3)), tf.TensorSpec((None, 5))
    data = tf.data.Dataset.from_generator(batches, output_signature=specs)
    model = keras.Sequential([keras.Input((time, 3)), QRNN(5)])
    model.compile("sgd", lambda y, outputs: ops.sum((y - outputs) ** 2))
    assert np.isfinite(model.fit(data, verbose=0).history["loss"]).all()
    assert model.predict(data, verbose=0).shape == (6, 5)
    assert all(np.isfinite(w).all() for w in model.get_weights())


@pytest.mark.parametrize("time", [6, None])
def test_mirrored_strategy_with_an_odd_last_batch(time, two_replicas):
    """The last batch has one row: one of the two replicas gets none."""
    with two_replicas.scope():
        model = keras.Sequential([keras.Input((time, 3)), QRNN(5)])
        model.compile("sgd", lambda y, outputs: ops.sum((y - outputs) ** 2))
    x, y = np.ones((5, 6, 3), "float32"), np.ones((5, 5), "float32")
    assert np.isfinite(model.fit(x, y, batch_size=4, verbose=0).history["loss"]).all()
    assert model.predict(x, batch_size=4, verbose=0).shape == (5, 5)
