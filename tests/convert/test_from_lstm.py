"""LSTM models become QRNN models."""

import functools

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_qrnn import QRNN
from keras_qrnn.convert import from_lstm
from keras_qrnn.layers import StatefulLSTM
from tests.assertions import assert_close

X = np.random.default_rng(0).normal(size=(2, 5, 3)).astype("float32")


def config_of_lstm(**arguments):
    return layers.LSTM(4, **arguments).get_config()


@pytest.mark.one_backend
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"recurrent_initializer": keras.initializers.Orthogonal(seed=3)},
        {"return_sequences": True, "return_state": True, "go_backwards": True},
        {"kernel_regularizer": "l2", "dropout": 0.2, "seed": 5, "name": "reader"},
        {"unit_forget_bias": False, "use_bias": False, "dtype": "float64"},
        {"activation": "relu", "bias_initializer": "ones", "stateful": True},
    ],
)
def test_config_of_an_lstm(arguments):
    """Arguments that both layers have are carried over, as are name and dtype."""
    given = config_of_lstm(**arguments)
    before = dict(given)
    got = QRNN.from_config(given).get_config()
    assert given == before
    only_theirs = given.keys() - got.keys()
    assert only_theirs == {
        *("unit_forget_bias", "unroll", "recurrent_initializer", "recurrent_dropout"),
        *("recurrent_regularizer", "recurrent_constraint"),
    }
    assert {n: got[n] for n in given.keys() - only_theirs} == {
        n: given[n] for n in given.keys() - only_theirs
    }


@pytest.mark.one_backend
@pytest.mark.parametrize("value", ["orthogonal", "Orthogonal", "OrthogonalInitializer"])
def test_names_of_the_default(value):
    QRNN.from_config({"units": 4, "recurrent_initializer": value})


@pytest.mark.one_backend
def test_config_of_a_gru():
    assert QRNN.from_config(layers.GRU(4, name="gru").get_config()).name == "gru"


@pytest.mark.one_backend
@pytest.mark.parametrize(
    "arguments",
    [
        {"recurrent_dropout": 0.2},
        {"recurrent_initializer": "zeros"},
        {"recurrent_initializer": keras.initializers.Orthogonal(gain=2)},
        {"recurrent_regularizer": "l2"},
        {"recurrent_constraint": "non_neg"},
        {"unroll": True},
    ],
)
@pytest.mark.parametrize("wrap", [lambda layer: layer, layers.Bidirectional])
def test_what_cannot_be_carried(arguments, wrap):
    (name,) = arguments
    with pytest.raises(ValueError, match=rf"does not take LSTM's argument `{name}`; "):
        from_lstm(wrap(layers.LSTM(4, **arguments)))


def lstm_model():
    words = keras.Input((None,), dtype="int32")
    wide = keras.initializers.RandomNormal(stddev=3)
    x = layers.Embedding(9, 3, wide, mask_zero=True)(words)
    x = layers.LSTM(4, return_sequences=True, name="first")(x)
    x = layers.Bidirectional(
        layers.LSTM(3, return_sequences=True),
        backward_layer=layers.LSTM(3, return_sequences=True, go_backwards=True),
    )(x)
    x = layers.LSTM(5, go_backwards=True)(x)
    return keras.Model(words, layers.Dense(1, name="head")(x))


def test_model_with_several_lstms_and_masks():
    model = lstm_model()
    qrnns = keras.models.clone_model(model, clone_function=from_lstm)
    inner = [qrnns.layers[2], *qrnns.layers[3]._layers[:2], qrnns.layers[4]]
    assert [type(layer) for layer in inner] == [QRNN] * 4
    assert [layer.units for layer in inner] == [4, 3, 3, 5]
    names = [[each.name for each in m.layers[1:]] for m in (qrnns, model)]
    assert names[0] == names[1]
    assert not [w for w in qrnns.weights if "recurrent_kernel" in w.path]
    # Each layer sees the mask: it does not matter where the padding stands.
    padded = np.array([[1, 2, 3, 4, 0, 0], [0, 1, 2, 0, 3, 4]])
    got, expected = qrnns.predict(padded, verbose=0)
    assert_close("outputs", got, expected, 1e-6)
    assert np.abs(got).max() > 1e-4
    assert isinstance(model.layers[2], layers.LSTM)  # the model itself is as it was


@pytest.mark.one_backend
def test_further_arguments_and_models_in_models():
    inside = keras.Sequential([keras.Input((5, 3)), layers.LSTM(4), layers.Dense(2)])
    model = keras.Sequential([keras.Input((6, 5, 3)), layers.TimeDistributed(inside)])
    to_qrnn = functools.partial(from_lstm, window=3, pooling="ifo")
    qrnns = keras.models.clone_model(model, clone_function=to_qrnn)
    (layer, _) = qrnns.layers[0].layer.layers
    assert (type(layer), layer.window, layer.pooling) == (QRNN, 3, "ifo")
    model = keras.Sequential([keras.Input((5, 3)), inside])
    qrnns = keras.models.clone_model(model, clone_function=to_qrnn, recursive=True)
    assert type(qrnns.layers[0].layers[0]) is QRNN
    assert ops.shape(qrnns(X)) == (2, 2)


@pytest.mark.one_backend
def test_functional_models_in_models():
    """In their configs a layer stands with its name and its inbound nodes."""
    inputs = keras.Input((5, 3))
    x = layers.LSTM(4, return_sequences=True, name="reader")(inputs)
    x = layers.Bidirectional(layers.LSTM(2))(x)
    inside = keras.Model(inputs, layers.Dense(2)(x), name="inside")
    model = keras.Sequential([keras.Input((5, 3)), inside])
    qrnns = keras.models.clone_model(model, clone_function=from_lstm)
    inner = qrnns.get_layer("inside")
    assert type(inner.get_layer("reader")) is QRNN
    assert type(inner.layers[2].forward_layer) is QRNN
    assert ops.shape(qrnns(X)) == (2, 2)
    assert len(qrnns.weights) == 2 * 3 + 2


@keras.saving.register_keras_serializable("tests")
class OtherLSTM(layers.LSTM):
    """Might compute something else."""


@pytest.mark.one_backend
@pytest.mark.parametrize("kind", [OtherLSTM, StatefulLSTM])
def test_subclasses_stay(kind):
    assert type(from_lstm(kind(4))) is kind
    assert type(from_lstm(layers.Bidirectional(kind(4))).forward_layer) is kind
    assert type(from_lstm(layers.Bidirectional(layers.LSTM(4))).forward_layer) is QRNN


@pytest.mark.one_backend
def test_states_of_an_lstm_are_refused():
    """A QRNN decoder takes no [h, c]. The error says what it takes."""
    source, target = keras.Input((5, 3)), keras.Input((4, 2))
    _, *state = layers.LSTM(4, return_state=True)(source)
    model = keras.Model([source, target], layers.LSTM(4)(target, initial_state=state))
    with pytest.raises(ValueError, match="initial_state"):
        keras.models.clone_model(model, clone_function=from_lstm)
