"""Weights and files: which variables are weights, and files across backends."""

import copy
import pickle
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

from keras_qrnn import QRNN, Bidirectional, QRNNStack
from keras_qrnn.layers import StatefulLSTM
from tests.assertions import assert_close

trains = pytest.mark.skipif(
    keras.config.backend() == "numpy", reason="the NumPy backend does not train"
)
X = np.random.default_rng(0).normal(size=(4, 6, 3)).astype("float32")


def model_of(batch, stateful, bidirectional=False):
    layer = QRNN(5, 3, stateful=stateful, return_sequences=True, zoneout=0.1)
    if bidirectional:
        layer = keras.layers.Bidirectional(layer)
    last = QRNN(2, stateful=stateful, return_sequences=True)
    return keras.Sequential([keras.Input(batch_shape=(batch, None, 3)), layer, last])


def by_set_weights(trained, streaming, path):
    streaming.set_weights(trained.get_weights())


def by_weights_file(trained, streaming, path):
    trained.save_weights(path / "model.weights.h5")
    streaming.load_weights(path / "model.weights.h5")


def by_legacy_file(trained, streaming, path):
    trained.save(path / "model.h5")
    streaming.load_weights(path / "model.h5")


def by_model_file(trained, streaming, path):
    trained.save(path / "model.keras")
    streaming.set_weights(keras.saving.load_model(path / "model.keras").get_weights())


def by_weights_of_another_batch_size(trained, streaming, path):
    between = model_of(4, True, any("bidi" in each.name for each in trained.layers))
    between.set_weights(trained.get_weights())
    between(X)  # its state is not zero any more
    streaming.set_weights(between.get_weights())


WAYS = [
    by_set_weights,
    by_weights_file,
    by_legacy_file,
    by_model_file,
    by_weights_of_another_batch_size,
]


@pytest.mark.parametrize("hand_over", WAYS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_train_on_batches_then_stream_one_at_a_time(tmp_path, hand_over, bidirectional):
    trained = model_of(None, False, bidirectional)
    trained.set_weights([w + 0.1 for w in trained.get_weights()])
    streaming = model_of(1, True, bidirectional)
    hand_over(trained, streaming, tmp_path)
    if bidirectional:  # cannot be cut
        assert_close("outputs", streaming(X[:1]), trained(X[:1]))
        return
    steps = [streaming(X[:1, t : t + 1]) for t in range(X.shape[1])]
    assert_close("outputs", ops.concatenate(steps, axis=1), trained(X[:1]))


def test_a_clone_streams():
    """`clone_model` keeps the layers' names."""

    def stateful(layer):
        return type(layer).from_config({**layer.get_config(), "stateful": True})

    trained = model_of(None, False)
    streaming = keras.models.clone_model(
        trained,
        input_tensors=keras.Input(batch_shape=(1, None, 3)),
        clone_function=stateful,
    )
    streaming.set_weights(trained.get_weights())
    steps = [streaming(X[:1, t : t + 1]) for t in range(X.shape[1])]
    assert_close("outputs", ops.concatenate(steps, axis=1), trained(X[:1]))


@pytest.mark.parametrize("wrap", [lambda layer: layer, keras.layers.Bidirectional])
@pytest.mark.parametrize("layer_class", [QRNN, StatefulLSTM])
def test_kept_states_are_variables_but_no_weights(layer_class, wrap):
    counts = {}
    for stateful in (False, True):
        # Without a state of its own to keep, StatefulLSTM is Keras's LSTM.
        plain = keras.layers.LSTM if layer_class is StatefulLSTM else QRNN
        layer = (layer_class if stateful else plain)(5, stateful=stateful)
        model = keras.Sequential([keras.Input(batch_shape=(4, None, 3)), wrap(layer)])
        lines = []
        model.summary(print_fn=lines.append)
        total = next(line for line in str(lines).split("\\n") if "Total" in line)
        counts[stateful] = (
            model.count_params(),
            [tuple(w.shape) for w in model.weights],
            [tuple(w.shape) for w in model.trainable_weights],
            len(model.non_trainable_weights),
            total,
        )
    assert counts[True] == counts[False]
    states = model.layers[0].states
    assert states
    tracked = {id(variable) for variable in model.non_trainable_variables}
    assert {id(state) for state in states} <= tracked
    model(X)
    kept = [ops.convert_to_numpy(state) for state in states]
    assert all(state.any() for state in kept)
    model.set_weights(model.get_weights())
    for n, (got, expected) in enumerate(zip(states, kept, strict=True)):
        assert_close(f"state {n}", ops.convert_to_numpy(got), expected, 0)


@trains
def test_restoring_the_best_weights_leaves_a_running_state():
    model = model_of(4, True)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    ends = []
    callbacks = [
        keras.callbacks.EarlyStopping("loss", restore_best_weights=True, patience=1),
        keras.callbacks.LambdaCallback(
            on_epoch_end=lambda *_: ends.append(
                [ops.convert_to_numpy(s) for s in model.layers[0].kept]
            )
        ),
    ]
    y = np.zeros((4, 6, 2))
    model.fit(X, y, batch_size=4, epochs=4, verbose=0, callbacks=callbacks)
    for got, last in zip(model.layers[0].kept, ends[-1], strict=True):
        assert_close("state", ops.convert_to_numpy(got), last, 0)
    assert np.abs(ends[-1][0] - ends[0][0]).max() > 0


@keras.saving.register_keras_serializable("tests")
class Scaled(QRNN):
    """A subclass with a weight and a layer of its own."""

    def build(self, sequences_shape, initial_state_shape=None):
        super().build(sequences_shape, initial_state_shape)
        self.scale = self.add_weight(shape=(), name="scale", initializer="ones")
        self.offset = self.add_weight(shape=(), name="offset", trainable=False)
        self.dense = keras.layers.Dense(4)
        self.dense.build((None, 4))

    def call(self, sequences, initial_state=None, mask=None, training=False):
        outputs = super().call(sequences, initial_state, mask, training)
        return self.dense(self.scale * outputs + self.offset)


@pytest.mark.parametrize("stateful", [False, True])
def test_a_subclass_keeps_its_own_weights(tmp_path, stateful):
    inputs = keras.Input(batch_shape=(4, None, 3))
    model = keras.Sequential([inputs, Scaled(4, stateful=stateful)])
    layer = model.layers[0]
    assert len(layer.weights) == 6
    layer.scale.assign(7.0)
    layer.offset.assign(3.0)
    expected = model(X)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    clone = keras.models.clone_model(model)
    clone.load_weights(tmp_path / "model.weights.h5")
    for got in (clone, keras.saving.load_model(tmp_path / "model.keras")):
        assert_close("outputs", got(X), expected)


@pytest.mark.parametrize("in_file", [True, False])
def test_a_bias_that_only_one_of_the_two_has(tmp_path, in_file):
    path = tmp_path / "model.weights.h5"
    model_with, model_without = (
        keras.Sequential([keras.Input((None, 3)), QRNN(4, use_bias=b, name="q")])
        for b in (in_file, not in_file)
    )
    model_with.save_weights(path)
    names = [["bias", "kernel"], ["kernel"]]
    received, expected = names if in_file else names[::-1]
    with pytest.raises(ValueError) as error:
        model_without.load_weights(path)
    message = " ".join(str(error.value).split())
    assert "Layer 'q' and the file have different weights" in message
    assert "`use_bias=False`" in message
    assert f"Expected: {expected}. Received: {received}" in message


class Subclass(keras.Model):
    """Keras looks for the weights of its layer in two places."""

    def __init__(self, units):
        super().__init__()
        self.rnn = QRNN(units, name="qrnn_0")
        self(ops.zeros((1, 2, 3)))

    def call(self, x):
        return self.rnn(x)


def in_a_model(layer):
    return keras.Sequential([keras.Input((None, 3)), layer])


OTHER_SIZES = {
    "layer": lambda units: in_a_model(QRNN(units, name="qrnn_0")),
    "stack": lambda units: in_a_model(QRNNStack(units, 2)),
    "bidirectional": lambda units: in_a_model(Bidirectional(QRNNStack(units, 1))),
    "subclass": Subclass,
}


@pytest.mark.parametrize("name", OTHER_SIZES)
def test_a_file_with_weights_of_other_sizes(tmp_path, name):
    make = OTHER_SIZES[name]
    model = make(4)
    model.save_weights(tmp_path / "model.weights.h5")
    if name != "subclass":
        model.save(tmp_path / "model.keras")
    for path in tmp_path.iterdir():
        with pytest.raises(ValueError) as error:
            make(5).load_weights(path)
        message = " ".join(str(error.value).split())
        if name == "subclass":
            assert "needs weights of shapes kernel (2, 3, 15), bias (15,)." in message
        else:
            assert "Weight `kernel` of layer 'qrnn_0' must have shape (2, 3, 15)." in (
                message
            )
            assert "Received: shape (2, 3, 12) in the file" in message


@pytest.mark.skipif(
    tuple(map(int, keras.__version__.split(".")[:2])) < (3, 15),
    reason="Keras 3.15 wrote the file: an older Keras does not know its initializers",
)
def test_reads_files_of_version_0_1_0():
    """The file is of a version that saved only "kernel" and "bias"."""
    path = Path(__file__).parent / "files" / "version_0.1.0.keras"
    model = keras.saving.load_model(path, compile=False)
    assert [type(layer) for layer in model.layers] == [QRNN, QRNN]
    assert [len(layer.weights) for layer in model.layers] == [2, 1]
    for weight in model.weights:
        ramp = np.linspace(-1, 1, int(np.prod(weight.shape))).reshape(weight.shape)
        assert_close(weight.path, ops.convert_to_numpy(weight), ramp, 1e-6)
    assert model.layers[0].stateful


class TwoBranches(keras.Model):
    """Calls one of two layers."""

    def __init__(self):
        super().__init__()
        self.used, self.unused = QRNN(4), QRNN(4)

    def call(self, x):
        return self.used(x)


def test_an_unbuilt_layer_is_saved_copied_and_pickled(tmp_path):
    model = TwoBranches()
    expected = model(X)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    other = TwoBranches()
    other(X)
    other.load_weights(tmp_path / "model.weights.h5")
    assert_close("outputs", other(X), expected, 0)
    for wrap in (lambda layer: layer, keras.layers.Bidirectional):
        keras.Sequential([wrap(QRNN(4))]).save(tmp_path / "unbuilt.keras")
        keras.saving.load_model(tmp_path / "unbuilt.keras")
    layer = QRNN(4, 3, stateful=True)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):  # noqa: S301
        assert twin.get_config() == layer.get_config()
        assert twin(X).shape == (4, 4)


def test_copies_of_a_built_layer_have_its_weights():
    layer = QRNN(4, 3, stateful=True)
    expected = layer(X)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):  # noqa: S301
        twin.reset_state()
        assert_close("outputs", twin(X), expected, 0)
