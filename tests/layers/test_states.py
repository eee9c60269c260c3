"""States: their shapes and dtypes, wrong ones, and sequences read in pieces."""

import copy
import gc
import io
from functools import partial

import keras
import numpy as np
import pytest
from keras import ops

from keras_qrnn import QRNN, QRNNStack
from keras_qrnn.layers import StatefulLSTM, _window_owner
from keras_qrnn.layers._states import as_value
from keras_qrnn.ops.equations import GATES
from tests.assertions import assert_close

BACKEND = keras.config.backend()
trains = pytest.mark.skipif(BACKEND == "numpy", reason="NumPy does not train")
RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 6, 3)).astype("float32")
CELL, WINDOW = np.ones((4, 5), "float32"), np.ones((4, 1, 3), "float32")


@pytest.mark.parametrize(
    ("window", "state"),
    [(1, [CELL, CELL]), (2, [CELL, CELL]), (1, [CELL] * 3), (4, [CELL, CELL])],
)
def test_refuses_the_states_of_an_lstm(window, state):
    message = r"of a QRNN must be .* \[h, c\] of an LSTM.*`initial_state=cell`"
    with pytest.raises(ValueError, match=message):
        QRNN(5, window)(X, initial_state=state)
    inputs = [keras.Input(s.shape[1:]) for s in state]
    with pytest.raises(ValueError, match=message):
        QRNN(5, window)(keras.Input((None, 3)), initial_state=inputs)
    with pytest.raises(ValueError, match=message):
        keras.layers.Bidirectional(QRNN(5, window))(X, initial_state=state * 2)


def test_the_previous_output_is_an_argument_of_its_own():
    with pytest.raises(ValueError, match="`previous_output="):
        QRNN(5)(X, initial_state=[CELL, WINDOW, CELL])
    with pytest.raises(ValueError, match="`previous_output` must have shape"):
        QRNN(5)(X, previous_output=CELL[:, :4])
    layer = QRNN(5, return_sequences=True)
    mask = np.arange(6) >= np.array([[2], [0], [6], [1]])
    outputs = ops.convert_to_numpy(layer(X, mask=mask, previous_output=7 * CELL))
    assert ((outputs == 7).all(-1) == ~mask).all()
    inputs = [keras.Input(a.shape[1:], dtype=a.dtype) for a in (X, mask, CELL)]
    model = keras.Model(
        inputs, layer(inputs[0], mask=inputs[1], previous_output=inputs[2])
    )
    assert_close("outputs", model([X, mask, 7 * CELL]), outputs, 0)


def traced(function):
    """`function` compiled by the backend."""
    if BACKEND == "jax":
        import jax

        return jax.jit(function)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.function(function, autograph=False)
    return function


@pytest.mark.parametrize("how", ["eager", "symbolic", "traced", "half"])
def test_refuses_the_window_of_another_layer(how):
    dtype = "mixed_float16" if how == "half" else None
    encoder = QRNN(5, return_state=True, dtype=dtype)
    decoder = QRNN(5, return_state=True, dtype=dtype)

    def translate(x):
        return decoder(x, initial_state=encoder(x)[1:])

    argument = keras.Input((None, 3)) if how == "symbolic" else ops.convert_to_tensor(X)
    run = traced(translate) if how == "traced" else translate
    with pytest.raises(ValueError, match=f"Received: the window of.*{encoder.name}"):
        run(argument)


def test_takes_a_window_that_is_not_known_to_be_another_layers():
    layer, other = QRNN(5, return_state=True), QRNN(5, return_state=True)
    _, *state = layer(X)
    expected = layer(X, initial_state=state)
    numpy = [ops.convert_to_numpy(s) for s in state]
    clone = QRNN.from_config(layer.get_config())  # of the same name
    clone.build(X.shape)
    other.build(X.shape)
    for each in (clone, other):
        each.set_weights(layer.get_weights())
    results = {
        "arrays": other(X, initial_state=numpy),
        "a copy": other(X, initial_state=[state[0], ops.copy(state[1])]),
        "a clone": clone(X, initial_state=state),
        "traced": traced(lambda x, s: layer(x, initial_state=s))(X, state),
    }
    inputs = keras.Input((None, 3))
    _, *states = layer(inputs)
    copied = other(inputs, initial_state=[states[0], ops.copy(states[1])])
    results["a symbolic copy"] = keras.Model(inputs, copied)(X)
    itself = layer(inputs, initial_state=states)
    results["symbolic"] = keras.Model(inputs, itself)(X)
    for name, got in results.items():
        assert_close(f"outputs of {name}", got[0], expected[0])


def test_whose_window_it_is_keeps_no_tensor_alive():
    layer = QRNN(5, return_state=True)
    gc.collect()
    before = len(_window_owner._names)
    results = [layer(X) for _ in range(3)]
    assert len(_window_owner._names) - before in (0, 3)
    del results
    gc.collect()
    assert len(_window_owner._names) == before


@pytest.mark.skipif(BACKEND not in ("torch", "numpy"), reason="slices are copies")
@pytest.mark.parametrize("layer_class", [QRNN, partial(QRNNStack, layers=2)])
def test_what_is_returned_keeps_no_sequence_in_memory(layer_class):
    def size(tensor):
        if BACKEND == "numpy":
            return (tensor if tensor.base is None else tensor.base).nbytes
        return tensor.untyped_storage().nbytes()

    layer = layer_class(4, window=2, return_state=True)
    outputs, *states = layer(np.ones((2, 50, 3), "float32"))
    assert size(outputs) == 2 * 4 * 4
    # Cells of 4 units, and windows of 3 features and of the first layer's 4 units.
    expected = [2 * 4 * 4, 2 * 3 * 4, 2 * 4 * 4, 2 * 4 * 4]
    assert [size(state) for state in states] == expected[: len(states)]


@pytest.mark.skipif(BACKEND != "torch", reason="a matter of PyTorch's devices")
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_weights_are_moved_to_the_device_of_the_inputs(dtype):
    import torch

    variable = keras.Variable(np.ones(2, "float32"), dtype="float32")
    elsewhere = torch.empty(1, device="meta")
    moved = as_value(variable, dtype, device_of=elsewhere)
    assert moved.device == elsewhere.device
    assert moved.dtype == getattr(torch, dtype)
    stays = as_value(variable, dtype, device_of=torch.empty(1))
    np.testing.assert_array_equal(stays.detach().float().numpy(), [1, 1])


@pytest.mark.skipif(BACKEND != "torch", reason="a matter of PyTorch's devices")
@pytest.mark.parametrize("layer_class", [QRNN, partial(QRNNStack, layers=2)])
def test_inputs_are_moved_to_the_device_of_keras(layer_class):
    import torch

    inputs = torch.ones((2, 6, 3))
    layer = layer_class(4, return_state=True)
    layer(inputs)
    with keras.device("meta"):  # in place of a GPU
        results = layer(inputs)
    assert {each.device.type for each in results} == {"meta"}


@pytest.mark.skipif(BACKEND != "torch", reason="a matter of PyTorch's files")
@pytest.mark.parametrize("how", ["file", "copy"])
def test_a_window_from_a_file_belongs_to_no_layer(how):
    """The layers of another process have other names."""
    import torch

    with torch.no_grad():
        _, *states = QRNN(5, return_state=True)(X)
    if how == "copy":
        states = copy.deepcopy(states)
    else:
        file = io.BytesIO()
        torch.save(states, file)
        file.seek(0)
        states = torch.load(file, weights_only=True)
    assert QRNN(5)(X, initial_state=states).shape == (4, 5)


def test_step_by_step():
    """Cell and window give exactly the whole. The cell alone does not."""
    layer = QRNN(5, 3, return_sequences=True, return_state=True)
    whole = ops.convert_to_numpy(layer(X, initial_state=CELL)[0])
    first = [CELL, np.zeros((4, 2, 3), "float32")]
    for name, state in {"exact": first, "cell alone": CELL}.items():
        steps = []
        for t in range(6):
            output, *state = layer(X[:, t : t + 1], initial_state=state)
            steps.append(ops.convert_to_numpy(output))
            if name == "cell alone":
                state = state[0]
        difference = np.abs(np.concatenate(steps, axis=1) - whole).max()
        assert (difference < 1e-5) == (name == "exact")


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize(
    "policy", ["mixed_float16", "mixed_bfloat16", "float16", "float64"]
)
def test_dtypes_of_states(policy, symbolic):
    layer = QRNN(5, return_state=True, dtype=policy)
    x = keras.Input((6, 3)) if symbolic else X
    output, *state = layer(x)
    variable = "float32" if "mixed" in policy else policy
    dtypes = [keras.backend.standardize_dtype(s.dtype) for s in (output, *state)]
    assert dtypes == [policy.removeprefix("mixed_"), variable, variable]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("pooling", ["f", "fo", "ifo"])
def test_streaming_in_mixed_precision(dtype, pooling):
    """Memories are long: a state in half precision would be wrong by 2 %."""
    units, steps = 8, 60
    bias = np.zeros((len(GATES[pooling]), units), "float32")
    bias[1] = 6.0
    layer = QRNN(
        units,
        pooling=pooling,
        return_sequences=True,
        return_state=True,
        dtype=f"mixed_{dtype}",
    )
    x = RNG.normal(size=(4, steps, 3)).astype("float32") + 1
    layer.build(x.shape)
    layer.set_weights([layer.get_weights()[0], bias.ravel()])
    _, whole, window = layer(x)
    state = None
    for t in range(steps):
        _, *state = layer(x[:, t : t + 1], initial_state=state)
    assert_close("cell", state[0], whole, 1e-4)
    assert_close("window", state[1], window, 0)


class LearnedStart(keras.layers.Layer):
    """The first cell state is a weight, for batches of four."""

    def __init__(self, trainable):
        super().__init__()
        self.rnn, self.learns = QRNN(5), trainable

    def build(self, shape):
        self.rnn.build(shape)
        self.start = self.add_weight(
            shape=(4, 5), name="start", initializer="ones", trainable=self.learns
        )

    def call(self, x):
        return self.rnn(x, initial_state=self.start)


@trains
@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("run_eagerly", [True, False])
def test_a_variable_as_initial_state(learns, run_eagerly):
    model = keras.Sequential([keras.Input(batch_shape=(4, 6, 3)), LearnedStart(learns)])
    start = model.layers[0].start
    expected = model.layers[0].rnn(X, initial_state=CELL)
    assert_close("outputs", model(X), expected)
    assert_close("outputs", model.layers[0].rnn(X, initial_state=start), expected)
    model.compile(keras.optimizers.SGD(1.0), "mse", run_eagerly=run_eagerly)
    model.fit(X, np.zeros((4, 5)), batch_size=4, verbose=0)
    assert (ops.convert_to_numpy(start) != 1).any() == learns


@trains
@pytest.mark.parametrize("layer_class", [QRNN, StatefulLSTM])
def test_a_short_batch_is_refused_by_the_layer(layer_class):
    inputs = keras.Input(batch_shape=(3, None, 3))
    model = keras.Sequential([inputs, layer_class(5, stateful=True)])
    model.compile("sgd", "mse")
    error = ValueError
    if BACKEND == "tensorflow":
        import tensorflow as tf

        error = tf.errors.InvalidArgumentError
    message = "batch size of a stateful layer must not change.*Expected: 3"
    with pytest.raises(error, match=message):
        model.fit(X, np.zeros((4, 5)), batch_size=3, verbose=0)
    with pytest.raises(error, match=message):
        model.predict(X, batch_size=3, verbose=0)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="a matter of TensorFlow's graphs")
@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_a_loop_of_autograph(window, masked):
    import tensorflow as tf

    layer = QRNN(5, window, return_sequences=True, return_state=True)
    mask = RNG.uniform(size=(4, 6)) < 0.6 if masked else np.ones((4, 6), bool)
    whole, *_ = layer(X, mask=mask, initial_state=CELL)
    state = [tf.constant(CELL), tf.zeros((4, window - 1, 3))][: 1 + (window > 1)]

    @tf.function
    def stream(x, mask, state):
        outputs = tf.TensorArray(tf.float32, size=6)
        for t in tf.range(6):
            step, at = x[:, t : t + 1], mask[:, t : t + 1]
            y, *state = layer(step, initial_state=state, mask=at if masked else None)
            outputs = outputs.write(t, y[:, 0])
        return tf.transpose(outputs.stack(), [1, 0, 2])

    valid = mask[:, :, None]
    got = stream(tf.constant(X), tf.constant(mask), state)
    assert_close("outputs", got * valid, whole * valid)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="a matter of TensorFlow's graphs")
@pytest.mark.parametrize("window", [1, 2])
def test_a_dataset_of_unknown_shapes(window):
    import tensorflow as tf

    data = tf.data.Dataset.from_generator(
        lambda: ((X[:rows], np.ones((rows, 5), "float32")) for rows in (4, 2)),
        output_signature=(tf.TensorSpec((None, None, None)), tf.TensorSpec((None, 5))),
    )
    model = keras.Sequential([keras.Input((None, 3)), QRNN(5, window)])
    expected = np.concatenate([model(X[:rows]) for rows in (4, 2)])
    assert_close("outputs", model.predict(data, verbose=0), expected)
    model.compile("sgd", "mse")
    model.fit(data, verbose=0)


@pytest.mark.parametrize("stateful", [False, True])
def test_built_twice(stateful):
    """As in `keras.layers.RNN`, the weights stay and a kept state starts anew."""
    layer = QRNN(5, stateful=stateful)
    expected = layer(X)
    weights = layer.get_weights()
    layer.build(X.shape)
    for name, got, before in zip("kb", layer.get_weights(), weights, strict=True):
        assert_close(name, got, before, 0)
    assert_close("outputs", layer(X), expected, 0)


@pytest.mark.parametrize("window", [1, 3])
def test_kept_states_are_an_initial_state(window):
    stateful = QRNN(5, window, stateful=True, return_state=True)
    _, *first = stateful(X)
    for n, (kept, returned) in enumerate(zip(stateful.states, first, strict=True)):
        assert_close(f"state {n}", ops.convert_to_numpy(kept), returned, 0)
    stateless = QRNN(5, window, name=stateful.name)
    stateless.build(X.shape)
    stateless.set_weights(stateful.get_weights())
    got = stateless(X, initial_state=stateful.states)
    assert_close("outputs", got, stateful(X)[0])


@pytest.mark.skipif(BACKEND != "jax", reason="JAX's shard_map")
@pytest.mark.parametrize("masked", [False, True])
def test_shard_map(masked):
    """Under `check_vma` a state that the layer makes must vary over the devices."""
    import jax
    from jax.sharding import Mesh, PartitionSpec

    if not hasattr(jax, "shard_map"):
        pytest.skip("this version of JAX has it elsewhere, without check_vma")
    layer = QRNN(5, return_sequences=True, pooling="ifo")
    mask = RNG.uniform(size=(4, 6)) < 0.6 if masked else None
    context = X[:, 0] if masked else None
    expected = layer(X, mask=mask, context=context)
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    rows = PartitionSpec("data")
    arguments = [X] if mask is None else [X, mask, context]
    sharded = jax.shard_map(
        lambda x, mask=None, context=None: layer(x, mask=mask, context=context),
        mesh=mesh,
        in_specs=(rows,) * len(arguments),
        out_specs=rows,
    )
    assert_close("outputs", jax.jit(sharded)(*arguments), expected)


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_a_batch_without_rows(window, masked):
    layer = QRNN(5, window, return_sequences=True, return_state=True, zoneout=0.1)
    mask = np.ones((0, 6), bool) if masked else None
    for training in (False, True):
        output, cell, *rest = layer(X[:0], mask=mask, training=training)
        assert (tuple(output.shape), tuple(cell.shape)) == ((0, 6, 5), (0, 5))
        assert [tuple(state.shape) for state in rest] == [(0, 2, 3)][: window - 1]


@pytest.mark.skipif(BACKEND != "tensorflow", reason="a matter of TensorFlow's data")
@pytest.mark.parametrize("time", [6, None])
def test_fit_on_a_batch_without_rows(time):
    import tensorflow as tf

    data = tf.data.Dataset.from_generator(
        lambda: ((X[:rows], np.ones((rows, 5), "float32")) for rows in (4, 0, 2)),
        output_signature=(tf.TensorSpec((None, time, 3)), tf.TensorSpec((None, 5))),
    )
    model = keras.Sequential([keras.Input((time, 3)), QRNN(5)])
    model.compile("sgd", lambda a, b: ops.sum((a - b) ** 2))
    assert np.isfinite(model.fit(data, verbose=0).history["loss"][0])
    assert model.predict(data, verbose=0).shape == (6, 5)


@pytest.mark.skipif(BACKEND != "jax", reason="a matter of JAX's exports")
@pytest.mark.parametrize("masked", [False, True])
def test_an_export_with_symbolic_shapes(masked):
    import jax
    from jax import export

    layer = QRNN(5, return_sequences=True)
    layer.build((None, None, 3))
    batch, time = export.symbolic_shape("b, t")
    shapes = [jax.ShapeDtypeStruct((batch, time, 3), "float32")]
    arguments = [X]
    if masked:
        shapes.append(jax.ShapeDtypeStruct((batch, time), "bool"))
        arguments.append(RNG.uniform(size=(4, 6)) < 0.6)
    function = jax.jit(lambda x, mask=None: layer(x, mask=mask))
    exported = export.export(function)(*shapes)
    expected = function(*arguments)
    assert_close("outputs", exported.call(*arguments), expected)
    gradient = exported.vjp().call(*arguments, expected)[0]
    _, pullback = jax.vjp(lambda x: function(x, *arguments[1:]), X)
    assert_close("gradient", gradient, pullback(expected)[0])
