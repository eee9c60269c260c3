"""The QRNN layer among Keras's own: models, wrappers, saving, training, errors."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_qrnn import QRNN

trains = pytest.mark.skipif(
    keras.config.backend() == "numpy", reason="the NumPy backend does not train"
)
X = np.random.default_rng(0).normal(size=(4, 6, 3)).astype("float32")


def to_numpy(tensor):
    return ops.convert_to_numpy(tensor)


def test_takes_the_place_of_lstm():
    """Arguments that both layers have, have the LSTM's defaults."""
    import inspect

    ours = inspect.signature(QRNN.__init__).parameters
    theirs = inspect.signature(keras.layers.LSTM.__init__).parameters
    shared = [
        name for name in ours if name in theirs and name not in ("self", "kwargs")
    ]
    assert len(shared) == 17
    assert {n: ours[n].default for n in shared} == {
        n: theirs[n].default for n in shared
    }
    assert list(inspect.signature(QRNN.call).parameters) == [
        *inspect.signature(keras.layers.LSTM.call).parameters,
        "previous_output",
        "context",
    ]


@pytest.mark.parametrize(
    "name",
    [
        "recurrent_initializer",
        "recurrent_regularizer",
        "recurrent_constraint",
        "recurrent_dropout",
        "unit_forget_bias",
        "unroll",
        "use_cudnn",
    ],
)
def test_refuses_what_has_no_meaning(name):
    with pytest.raises(ValueError, match=rf"does not take LSTM's argument `{name}`; "):
        QRNN(4, **{name: 0.5})


def test_takes_what_changes_nothing():
    layer = QRNN(
        4,
        recurrent_regularizer=None,
        recurrent_constraint=None,
        recurrent_dropout=0.0,
        unit_forget_bias=False,
        unroll=False,
        use_cudnn=True,
        implementation=2,
        time_major=False,
    )
    assert not {"unroll", "use_cudnn", "implementation"} & layer.get_config().keys()


@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool", "float16", "float64"])
def test_inputs_of_another_dtype(dtype):
    x = (np.arange(24).reshape(2, 4, 3) % 5 > 1).astype(dtype)
    layer = QRNN(4)
    outputs = to_numpy(layer(x))
    assert outputs.dtype == "float32"
    assert np.abs(outputs - to_numpy(layer(x.astype("float32")))).max() < 1e-6
    assert np.abs(outputs).min() > 0
    model = keras.Sequential([keras.Input((4, 3), dtype=dtype), layer])
    assert np.abs(model.predict(x, verbose=0) - outputs).max() < 1e-6


def test_unknown_argument():
    with pytest.raises((TypeError, ValueError), match="colour"):
        QRNN(4, colour="red")


@trains
@pytest.mark.parametrize("jit_compile", [True, False])
@pytest.mark.parametrize("run_eagerly", [True, False])
def test_functional_with_unknown_sizes(jit_compile, run_eagerly):
    if jit_compile and (run_eagerly or keras.config.backend() == "torch"):
        pytest.skip(
            "not a combination of this backend (for torch.compile see test_compile)"
        )
    inputs = keras.Input((None, 3))
    x, cell, window = QRNN(
        5, return_sequences=True, return_state=True, zoneout=0.1, dropout=0.1
    )(inputs)
    assert x.shape == (None, None, 5)
    assert (cell.shape, window.shape) == ((None, 5), (None, 1, 3))
    y = QRNN(5, pooling="ifo")(x, initial_state=cell)
    model = keras.Model(inputs, keras.layers.Dense(1)(y))
    model.compile("adam", "mse", jit_compile=jit_compile, run_eagerly=run_eagerly)
    before = model.predict(X, verbose=0)
    history = model.fit(X, np.ones((4, 1)), epochs=20, verbose=0).history["loss"]
    assert history[-1] < history[0]
    assert model.predict(X[:, :2], verbose=0).shape == (4, 1)
    assert model.predict(X[:3], verbose=0).shape == (3, 1)
    assert np.abs(model.predict(X, verbose=0) - before).max() > 1e-3


def test_eager_and_graph_agree():
    model = keras.Sequential([keras.Input((None, 3)), QRNN(5, return_sequences=True)])
    eager = to_numpy(model(X))
    assert np.abs(model.predict(X, verbose=0) - eager).max() < 1e-5
    long = np.random.default_rng(1).normal(size=(1, 200, 3)).astype("float32")
    assert np.abs(model.predict(long, verbose=0) - to_numpy(model(long))).max() < 1e-5


@trains
def test_subclassed_model_with_masks():
    class Classifier(keras.Model):
        def __init__(self):
            super().__init__()
            self.embedding = keras.layers.Embedding(10, 4, mask_zero=True)
            self.first = QRNN(5, return_sequences=True)
            self.second = QRNN(5)
            self.head = keras.layers.Dense(1)

        def call(self, tokens, training=False):
            x = self.first(self.embedding(tokens), training=training)
            return self.head(self.second(x, training=training))

    model = Classifier()
    padded, short = np.array([[3, 5, 2, 0, 0]]), np.array([[3, 5, 2]])
    assert np.abs(to_numpy(model(padded)) - to_numpy(model(short))).max() < 1e-6
    left, holes = np.array([[0, 0, 3, 5, 2]]), np.array([[3, 0, 5, 0, 2]])
    for tokens in (left, holes):
        assert np.abs(to_numpy(model(tokens)) - to_numpy(model(short))).max() < 1e-6
    model.compile("adam", "mse")
    model.fit(padded, np.ones((1, 1)), epochs=1, verbose=0)


def test_mask_passes_on():
    layer = QRNN(2, return_sequences=True, return_state=True)
    mask = np.ones((4, 6), bool)
    assert layer.compute_mask(X, mask)[0] is mask
    assert layer.compute_mask(X, mask)[1:] == [None, None]
    assert QRNN(2).compute_mask(X, mask) is None
    layer = QRNN(2, return_sequences=True, return_state=True, padding="same")
    assert layer.compute_mask(X, mask)[1:] == [None]


@pytest.mark.parametrize("merge_mode", ["concat", "sum", None])
@pytest.mark.parametrize("return_sequences", [True, False])
def test_bidirectional(merge_mode, return_sequences):
    layer = keras.layers.Bidirectional(
        QRNN(5, return_sequences=return_sequences), merge_mode=merge_mode
    )
    mask = np.array([[1] * 6, [1] * 4 + [0] * 2, [0, 1, 0, 1, 1, 0], [1] * 6], bool)
    got = layer(X, mask=mask)
    forward = layer.forward_layer(X, mask=mask)
    backward = layer.backward_layer(X, mask=mask)
    if return_sequences:
        backward = ops.flip(backward, axis=1)
    if merge_mode == "sum":
        expected = forward + backward
    elif merge_mode == "concat":
        expected = ops.concatenate([forward, backward], axis=-1)
    else:
        got, expected = ops.stack(got), ops.stack([forward, backward])
    assert np.abs(to_numpy(got) - to_numpy(expected)).max() < 1e-6
    assert layer.backward_layer.go_backwards


@pytest.mark.parametrize("symbolic", [False, True])
def test_bidirectional_with_states(symbolic):
    encoder = keras.layers.Bidirectional(QRNN(5, return_state=True))
    decoder = keras.layers.Bidirectional(QRNN(5, return_sequences=True))
    if symbolic:
        inputs = keras.Input((None, 3))
        _, *states = encoder(inputs)
        model = keras.Model(inputs, decoder(inputs, initial_state=states[::2]))
        got = model.predict(X, verbose=0)
    else:
        _, *states = encoder(X)
        got = to_numpy(decoder(X, initial_state=states[::2]))
    _, *states = encoder(X)
    assert len(states) == 4
    forward = decoder.forward_layer(X, initial_state=states[0])
    assert np.abs(got[..., :5] - to_numpy(forward)).max() < 1e-5
    assert np.abs(got - to_numpy(decoder(X))).max() > 1e-3
    # The windows are the encoder's own.
    with pytest.raises(ValueError, match="the window of layer 'forward_qrnn'"):
        decoder(X, initial_state=states)
    again = encoder(X, initial_state=states)
    forward = encoder.forward_layer(X, initial_state=states[:2])
    assert np.abs(to_numpy(again[0])[..., :5] - to_numpy(forward[0])).max() < 1e-6


def test_time_distributed():
    x = np.stack([X, X + 1], axis=1)  # (batch, 2 sequences, time, features)
    layer = keras.layers.TimeDistributed(QRNN(5))
    got = to_numpy(layer(x))
    for n in range(2):
        assert np.abs(got[:, n] - to_numpy(layer.layer(x[:, n]))).max() < 1e-6


@pytest.mark.parametrize("stateful", [False, True])
def test_saves_and_loads_without_custom_objects(tmp_path, stateful):
    model = keras.Sequential(
        [
            keras.Input(batch_shape=(4, 6, 3)),
            QRNN(
                5,
                3,
                "ifo",
                zoneout=0.1,
                dropout=0.2,
                stateful=stateful,
                return_sequences=True,
                kernel_regularizer="l2",
                bias_constraint="max_norm",
            ),
            keras.layers.Bidirectional(QRNN(2, padding="same")),
        ]
    )
    expected = model.predict(X, batch_size=4, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    # The kept state belongs to a run, not to the model: it starts from zeros.
    assert np.abs(loaded.predict(X, batch_size=4, verbose=0) - expected).max() < 1e-6
    ours, theirs = model.layers[0].get_config(), loaded.layers[0].get_config()
    assert ours == theirs
    model.save_weights(tmp_path / "model.weights.h5")
    loaded.load_weights(tmp_path / "model.weights.h5")


@trains
def test_stateful_training_carries_the_state():
    model = keras.Sequential(
        [keras.Input(batch_shape=(4, None, 3)), QRNN(5, stateful=True)]
    )
    model.compile(keras.optimizers.SGD(0.0), "mse")
    layer = model.layers[0]
    model.fit(X, np.zeros((4, 5)), batch_size=4, epochs=2, shuffle=False, verbose=0)
    after = [to_numpy(s) for s in layer.kept]
    layer.reset_state()
    assert not any(to_numpy(s).any() for s in layer.kept)
    layer(X), layer(X)
    for got, expected in zip(layer.kept, after, strict=True):
        assert np.abs(to_numpy(got) - expected).max() < 1e-5


@trains
def test_regularizers_constraints_and_seed():
    layer = QRNN(
        5, zoneout=0.5, seed=7, kernel_regularizer=keras.regularizers.L2(0.1),
        activity_regularizer=keras.regularizers.L2(0.1), kernel_constraint="non_neg",
    )  # fmt: skip
    first = to_numpy(layer(X, training=True))
    assert len(layer.losses) == 2
    assert layer.kernel.constraint is not None
    other = QRNN(5, zoneout=0.5, seed=7)
    other.build(X.shape)
    other.set_weights(layer.get_weights())
    assert np.array_equal(to_numpy(other(X, training=True)), first)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"units": 0}, "`units` must be a positive integer. Received: units=0"),
        ({"units": 2.5}, "`units` must be a positive integer"),
        ({"units": True}, "`units` must be a positive integer"),
        ({"units": 2, "window": 0}, "`window` must be a positive integer"),
        ({"units": 2, "window": "2"}, "`window` must be a positive integer.*='2'$"),
        ({"units": 2, "window": "relu"}, "`window` must be .* name: activation='relu'"),
        *[
            ({"units": 2, name: value}, f"`{name}` must be True or False. Received")
            for name, value in {
                "use_bias": "no",
                "return_sequences": "yes",
                "return_state": None,
                "go_backwards": 2,
                "stateful": 0.5,
                "zero_output_for_mask": "False",
            }.items()
        ],
        ({"units": 2, "zoneout": 1.0}, r"`zoneout` must be in \[0, 1\)"),
        ({"units": 2, "dropout": -0.1}, r"`dropout` must be in \[0, 1\)"),
        ({"units": 2, "zoneout": float("nan")}, r"`zoneout` must be in \[0, 1\)"),
        ({"units": 2, "kernel_dropout": 1.0}, r"`kernel_dropout` must be in \[0, 1\)"),
        ({"units": 2, "zoneout": "a"}, r"`zoneout` must be a number in \[0, 1\)"),
        ({"units": 2, "pooling": "of"}, "`pooling` must be one of 'f', 'fo', 'ifo'"),
        ({"units": 2, "padding": "valid"}, "`padding` must be one of 'causal', 'same'"),
        (
            {"units": 2, "padding": "same", "stateful": True},
            'stateful QRNN must have `padding="causal"`.*next batch. Received: stat',
        ),
    ],
)
def test_refuses_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        QRNN(**arguments)


def test_refuses_bad_inputs():
    layer = QRNN(5)
    with pytest.raises(ValueError, match="expected ndim=3"):
        layer(X[0])
    layer(X)
    with pytest.raises(ValueError, match="expected axis -1 of input shape to have"):
        layer(X[..., :2])
    with pytest.raises(ValueError, match="at least one time step"):
        layer(X[:, :0])
    with pytest.raises(ValueError, match="at least one time step"):
        QRNN(5)(keras.Input((0, 3)))
    with pytest.raises(ValueError, match=r"last dimension .* must be known"):
        QRNN(5)(keras.Input((4, None)))


@pytest.mark.parametrize(
    "state",
    [
        [np.zeros((4, 6), "float32")],
        [np.zeros((3, 5), "float32")],
        [np.zeros((4, 5), "float32"), np.zeros((4, 2, 3), "float32")],
        [np.zeros((4, 5), "float32")] * 4,
        [np.zeros((4, 5), "float32"), None],
        [],
    ],
)
def test_refuses_bad_initial_states(state):
    with pytest.raises(ValueError, match="Argument `initial_state`"):
        QRNN(5)(X, initial_state=state)


@pytest.mark.parametrize("x", [X, keras.Input((6, 3))], ids=["eager", "symbolic"])
def test_the_same_padding_has_one_state(x):
    layer = QRNN(5, 3, padding="same", return_state=True, dtype="mixed_float16")
    _, cell = layer(x, initial_state=[np.zeros((4, 5), "float32")])
    assert keras.backend.standardize_dtype(cell.dtype) == "float32"
    assert layer.compute_output_shape((None, 6, 3)) == ((None, 5), (None, 5))
    window = np.zeros((4, 2, 3), "float32")
    with pytest.raises(ValueError, match='`padding="same"` must be the cell state alo'):
        layer(x, initial_state=[cell, window])


def test_refuses_a_symbolic_state_of_the_wrong_shape():
    with pytest.raises(ValueError, match=r"the cell_state \(None, 5\) and"):
        QRNN(5)(keras.Input((None, 3)), initial_state=keras.Input((6,)))


@pytest.mark.parametrize("shape", [(4, 5), (3, 6), (4, 6, 2), (3, 6, 1), (6,)])
def test_refuses_bad_masks(shape):
    with pytest.raises(ValueError, match=r"`mask` must have shape \(batch, time\)"):
        QRNN(5)(X, mask=np.ones(shape, bool))


def test_stateful_needs_one_known_batch_size():
    with pytest.raises(ValueError, match="needs a static batch size"):
        QRNN(5, stateful=True)(keras.Input((None, 3)))
    layer = QRNN(5, stateful=True)
    layer(X)
    with pytest.raises(
        ValueError, match="batch size of a stateful layer must not change"
    ):
        layer(X[:2])
