"""The language model: loss, perplexity, states, regularization, precision, copies."""

import contextlib
import math

import keras
import numpy as np
import pytest

from keras_qrnn.models import LanguageModel
from keras_qrnn.training import evaluate_perplexity
from keras_qrnn.training.evaluation import weight_averages
from tests.assertions import assert_close

trains = pytest.mark.skipif(
    keras.config.backend() == "numpy", reason="the NumPy backend does not train"
)
RNG = np.random.default_rng(0)
CELLS = ["qrnn", "lstm", "unrolled_lstm"]


def tiny(cell="qrnn", **changes):
    sizes = {"vocab_size": 11, "emb_dim": 6, "units": 5, "batch_size": 2, "seed": 1}
    model = LanguageModel(cell=cell, **(sizes | changes))
    model.build()
    return model


def batch(rows=2, steps=7):
    x = RNG.integers(0, 11, (rows, steps)).astype("int32")
    return x, np.roll(x, -1, axis=1), np.ones((rows, steps), "float32")


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


@pytest.mark.parametrize("cell", CELLS)
def test_loss_and_perplexity(cell):
    """The loss is a sum over steps and a mean over rows. Perplexity is per token."""
    model = tiny(cell)
    model.compile()
    x, y, weights = batch()
    weights[1, 4:] = 0
    logits = keras.ops.convert_to_numpy(model(x))
    model.reset_state()
    picked = np.take_along_axis(log_softmax(logits), y[..., None], -1)[..., 0]
    total = -(picked * weights).sum()
    logs = model.evaluate(x, y, 2, 0, sample_weight=weights, return_dict=True)
    assert math.isclose(logs["loss"], total / 2, rel_tol=1e-5)
    assert math.isclose(
        logs["perplexity"], math.exp(total / weights.sum()), rel_tol=1e-5
    )


@trains
@pytest.mark.parametrize("steps", [1, 7])
def test_regularization_of_the_activations(steps):
    """Only the loss of training has it, on the scale of the cross-entropy.

    Padded steps, whose weight is 0, are not in it.
    """
    chosen = {"dropout": 0.5, "zoneout": 0.0, "locked_dropout": True, "layers": 1}
    x, y, weights = batch(steps=steps)
    weights[1, steps // 2 :] = 0

    def loss(alpha, beta):
        keras.utils.set_random_seed(0)
        model = tiny(
            activation_regularization=alpha, temporal_regularization=beta, **chosen
        )
        model.compile(keras.optimizers.SGD(0.0))
        logs = model.fit(x, y, 2, sample_weight=weights, verbose=0).history
        model.reset_state()
        more = model.evaluate(x, y, 2, 0, sample_weight=weights, return_dict=True)
        return logs["loss"][0], logs["perplexity"][0], more["loss"]

    keras.utils.set_random_seed(0)
    model = tiny(**chosen)
    embedded = model.dropouts[0](model.embedding(x), training=True)
    raw = model.recurrent[0](embedded, training=True)
    dropped = keras.ops.convert_to_numpy(model.dropouts[1](raw, training=True))
    raw = keras.ops.convert_to_numpy(raw)
    plain, weighed = loss(0.0, 0.0), loss(2.0, 3.0)
    counted = weights[..., None]
    expected = 2 * (counted * np.square(dropped)).sum() / (2 * 5)
    changes = np.square(np.diff(raw, axis=1))
    expected += 3 * (counted[:, 1:] * changes).sum() / (2 * 5)
    assert expected > 0.001
    assert math.isclose(weighed[0] - plain[0], expected, rel_tol=1e-3, abs_tol=1e-5)
    assert math.isclose(weighed[1], plain[1], rel_tol=1e-6)
    assert math.isclose(weighed[2], plain[2], rel_tol=1e-6)


@trains
@pytest.mark.parametrize("cell", CELLS)
def test_fit_carries_the_state(cell):
    """The second batch of an epoch starts where the first one stopped."""
    model = tiny(cell, dropout=0.0, zoneout=0.0)
    model.compile(keras.optimizers.SGD(0.0))
    x, y, _ = batch(steps=8)
    pieces = np.concatenate([x[:, :4], x[:, 4:]]), np.concatenate([y[:, :4], y[:, 4:]])
    logs = model.fit(*pieces, batch_size=2, shuffle=False, verbose=0).history
    model.reset_state()
    logits = keras.ops.convert_to_numpy(model(x))
    picked = np.take_along_axis(log_softmax(logits), y[..., None], -1)
    whole = math.exp(-picked.mean())
    assert math.isclose(logs["perplexity"][0], whole, rel_tol=1e-5)
    model.reset_state()
    cut = [model.evaluate(x[:, :4], y[:, :4], 2, 0, return_dict=True)]
    model.reset_state()
    cut.append(model.evaluate(x[:, 4:], y[:, 4:], 2, 0, return_dict=True))
    without = math.exp(np.mean([math.log(logs["perplexity"]) for logs in cut]))
    assert abs(without - whole) > 1e-4


@pytest.mark.parametrize("cell", CELLS)
def test_perplexity_is_of_the_whole_stream(cell):
    """Every token but the first counts once, wherever the stream is cut."""
    model = tiny(cell)
    ids = RNG.integers(0, 11, 40).astype("int32")
    whole = keras.ops.convert_to_numpy(model.with_batch_size(1)(ids[None, :-1]))
    picked = np.take_along_axis(log_softmax(whole[0]), ids[1:, None], -1)
    expected = math.exp(-picked.mean())
    for steps in (1, 7, 39, 64):
        got = evaluate_perplexity(model, ids, steps)
        assert math.isclose(got, expected, rel_tol=1e-5)
    for layer in model.recurrent:  # the model's own state is untouched
        for state in layer.states:
            assert not keras.ops.convert_to_numpy(state).any()


@pytest.mark.parametrize("steps", [6, 600])
def test_perplexity_with_a_window_of_one(steps):
    """One row. With a window of 1, only the inputs tell their shape."""
    model = tiny(window=1)
    ids = RNG.integers(0, 11, 1200).astype("int32")
    logits = keras.ops.convert_to_numpy(model.with_batch_size(1)(ids[None, :-1]))[0]
    expected = -np.take_along_axis(log_softmax(logits), ids[1:, None], -1).mean()
    found = evaluate_perplexity(model, ids, steps)
    assert math.isclose(found, math.exp(expected), rel_tol=1e-4)


AWD = {"tied": True, "locked_dropout": True, "embedding_dropout": 0.2}
AWD |= {"hidden_dropout": 0.3, "window": [3, 1]}
AWD |= {"activation_regularization": 2.0, "temporal_regularization": 1.0}
AWD |= {"sampled_words": 5}


@pytest.mark.parametrize("more", [{}, AWD], ids=["paper", "awd"])
@pytest.mark.parametrize("cell", CELLS)
def test_saves_and_loads(tmp_path, cell, more):
    if more and cell == "qrnn":
        more = more | {"kernel_dropout": 0.1}
    model = tiny(cell, **more)
    model.compile(keras.optimizers.SGD(0.5))
    x, _, _ = batch()
    expected = keras.ops.convert_to_numpy(model(x))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert np.abs(keras.ops.convert_to_numpy(loaded(x)) - expected).max() < 1e-6
    assert loaded.get_config() == model.get_config()
    assert float(loaded.optimizer.learning_rate) == 0.5


@trains
def test_twin_stays_valid_while_the_model_trains():
    model = tiny()
    model.compile("sgd")
    twin = model.with_batch_size(1)
    before = keras.ops.convert_to_numpy(twin(np.array([[1, 2]])))
    x, y, _ = batch()
    model.fit(x, y, batch_size=2, verbose=0)
    twin.reset_state()
    assert np.array_equal(keras.ops.convert_to_numpy(twin(np.array([[1, 2]]))), before)


@pytest.mark.parametrize("cell", CELLS)
def test_weights_fit_a_model_of_another_batch_size(tmp_path, cell):
    """Trained in batches, then streamed a token at a time."""
    model = tiny(cell)
    x, _, _ = batch()
    whole = keras.ops.convert_to_numpy(model(x))[:1]
    kept = [keras.ops.convert_to_numpy(s) for s in model.recurrent[0].states]
    model.set_weights(model.get_weights())
    for state, before in zip(model.recurrent[0].states, kept, strict=True):
        assert np.array_equal(keras.ops.convert_to_numpy(state), before)
    model.save_weights(tmp_path / "model.weights.h5")
    by_file, by_arrays = tiny(cell, batch_size=1), tiny(cell, batch_size=1)
    by_file.load_weights(tmp_path / "model.weights.h5")
    by_arrays.set_weights(model.get_weights())
    assert by_file.count_params() == model.count_params()
    for streaming in (by_file, by_arrays):
        steps = [streaming(x[:1, t : t + 1]) for t in range(x.shape[1])]
        got = keras.ops.convert_to_numpy(keras.ops.concatenate(steps, axis=1))
        assert np.abs(got - whole).max() < 1e-5


@pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="tf.distribute is TensorFlow's"
)
def test_two_replicas_are_one_device(two_replicas):
    """Each replica has half of the rows. The results equal those of one device.

    The second batch begins with the states of the first.
    """
    x, y, weights = batch(rows=8, steps=3)
    weights[3, 2:] = 0
    options = {"dropout": 0.0, "zoneout": 0.0, "layers": 1}
    options |= {"activation_regularization": 2.0, "temporal_regularization": 1.0}
    logs, steps = [], []
    for strategy in (None, two_replicas):
        keras.utils.set_random_seed(0)
        with strategy.scope() if strategy else contextlib.nullcontext():
            model = tiny(batch_size=2 if strategy else 4, **options)
            model.compile(keras.optimizers.SGD(0.1))
        before = model.get_weights()
        history = model.fit(
            x, y, 4, verbose=0, sample_weight=weights, shuffle=False
        ).history
        steps.append([a - b for a, b in zip(model.get_weights(), before, strict=True)])
        logs.append([history["loss"][0], history["perplexity"][0]])
    assert_close("logs", logs[1], logs[0])
    for weight, got, expected in zip(model.weights, *steps[::-1], strict=True):
        assert_close(f"step of {weight.path}", got, expected)


@trains
def test_twin_of_a_frozen_model():
    model = tiny(units=6)
    model.compile(keras.optimizers.SGD(0.5, use_ema=True, ema_momentum=0.5))
    before = [keras.ops.convert_to_numpy(weight) for weight in model.weights]
    ids = RNG.integers(0, 11, 40).astype("int32")
    evaluate_perplexity(model, ids)  # no averages are there yet
    model.embedding.trainable = False
    x, y, _ = batch()
    model.fit(x, y, batch_size=2, epochs=3, verbose=0)
    twin = model.with_batch_size(1)
    for mine, its in zip(model.weights, twin.weights, strict=True):
        assert mine.name == its.name
        assert np.array_equal(*map(keras.ops.convert_to_numpy, (mine, its)))
    after = [keras.ops.convert_to_numpy(weight) for weight in model.weights]
    changed = [not np.array_equal(*pair) for pair in zip(before, after, strict=True)]
    assert changed == [weight is not model.embedding.embeddings
                       for weight in model.weights]  # fmt: skip
    averages = weight_averages(model)
    untouched = [a is w for a, w in zip(averages, model.weights, strict=True)]
    assert untouched == [not each for each in changed]
    evaluate_perplexity(model, ids)


@pytest.mark.parametrize("cell", CELLS)
def test_policy_is_the_models_own(tmp_path, cell):
    model = tiny(cell, dtype="mixed_bfloat16", tied=True, embedding_dropout=0.1)
    layers = [*model.recurrent, *model.dropouts, model.embedding_dropout]
    assert {layer.compute_dtype for layer in layers} == {"bfloat16"}
    assert model.embedding.compute_dtype == "float32"
    assert model.with_batch_size(1).recurrent[0].compute_dtype == "bfloat16"
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.dtype_policy.name == "mixed_bfloat16"
    assert loaded.recurrent[0].compute_dtype == "bfloat16"


def test_paper_size():
    model = LanguageModel(10000, emb_dim=640)
    model.build()
    count = sum(math.prod(v.shape) for v in model.weights)
    assert count == 10000 * 640 + 2 * (2 * 640 * 1920 + 1920) + 640 * 10000 + 10000


def test_tied_softmax_is_the_embedding():
    model = tiny(tied=True, window=[3, 1])
    assert [layer.units for layer in model.recurrent] == [5, 6]
    assert [layer.window for layer in model.recurrent] == [3, 1]
    assert len(model.trainable_variables) == 1 + 2 * 2 + 1
    x, _, _ = batch()
    hidden = keras.ops.convert_to_numpy(model.hidden(x))
    model.reset_state()
    logits = keras.ops.convert_to_numpy(model(x))
    embeddings = keras.ops.convert_to_numpy(model.embedding.embeddings)
    assert np.abs(logits - hidden @ embeddings.T).max() < 1e-5


@pytest.mark.parametrize("locked", [False, True])
def test_locked_dropout_is_the_same_at_all_steps(locked):
    model = tiny(locked_dropout=locked, dropout=0.5, zoneout=0.0, units=64)
    x, _, _ = batch()
    dropped = keras.ops.convert_to_numpy(model.hidden(x, training=True)) == 0
    assert 0.3 < dropped.mean() < 0.7
    assert (dropped == dropped[:, :1]).all() == locked
    assert (dropped[0] != dropped[1]).any()
    model.reset_state()
    assert keras.ops.convert_to_numpy(model.hidden(x)).all()


def test_hidden_dropout_is_that_between_layers():
    model = tiny(layers=3, dropout=0.4, hidden_dropout=0.2)
    assert [layer.rate for layer in model.dropouts] == [0.4, 0.2, 0.2, 0.4]


@trains
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_awd_model_trains(policy):
    keras.config.set_dtype_policy(policy)
    try:
        more = {"dropout": 0.1, "kernel_dropout": 0.1}
        model = tiny(**AWD, **more, layers=2, emb_dim=16, units=16)
        model.compile(keras.optimizers.SGD(0.2, global_clipnorm=10.0))
        x, y, _ = batch()
        history = model.fit(x, y, batch_size=2, epochs=60, verbose=0).history
    finally:
        keras.config.set_dtype_policy("float32")
    assert history["perplexity"][-1] < 0.7 * history["perplexity"][0]


@trains
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_trains(policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = tiny(dropout=0.0, zoneout=0.0)
        model.compile(keras.optimizers.SGD(0.5))
        x, y, _ = batch()
        history = model.fit(x, y, batch_size=2, epochs=30, verbose=0).history
    finally:
        keras.config.set_dtype_policy("float32")
    assert history["perplexity"][-1] < 0.7 * history["perplexity"][0]


@trains
def test_gradients_in_bfloat16():
    """Sums over the 2,100 tokens of a batch must not be taken in bfloat16."""

    def steps_taken(policy):
        keras.config.set_dtype_policy(policy)
        try:
            keras.utils.set_random_seed(0)
            model = tiny(batch_size=20, dropout=0.0, zoneout=0.0)
            model.compile(keras.optimizers.SGD(1.0))
        finally:
            keras.config.set_dtype_policy("float32")
        before = [keras.ops.convert_to_numpy(v) for v in model.trainable_variables]
        x, y = np.ones((2, 20, 105), "int32")
        model.fit(x, y, batch_size=20, verbose=0)
        return {
            variable.path: keras.ops.convert_to_numpy(variable) - start
            for variable, start in zip(model.trainable_variables, before, strict=True)
        }

    half, full = steps_taken("mixed_bfloat16"), steps_taken("float32")
    for (path, got), expected in zip(half.items(), full.values(), strict=True):
        error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
        assert error < 0.03, path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cell": "gru"}, "`cell` must be one of 'qrnn', 'lstm', 'unrolled_lstm'"),
        ({"layers": 0}, "`layers` must be a positive integer"),
        ({"vocab_size": 2.5}, "`vocab_size` must be a positive integer"),
        ({"window": [2, 1, 1]}, "`window` must be an integer or a list with one"),
        ({"embedding_dropout": 1.0}, r"`embedding_dropout` must be in \[0, 1\)"),
        ({"hidden_dropout": 1.0}, r"`hidden_dropout` must be in \[0, 1\)"),
        ({"kernel_dropout": 1.0}, r"`kernel_dropout` must be in \[0, 1\)"),
        ({"kernel_dropout": 0.1, "cell": "lstm"}, "`kernel_dropout` goes with cell="),
        ({"activation_regularization": -1.0}, "`activation_regularization` must be 0"),
        ({"sampled_words": -1}, "`sampled_words` must be 0 or a positive integer"),
        ({"sampled_words": 12}, "`sampled_words` must be at most 11"),
        ({"temporal_regularization": math.nan}, "`temporal_regularization` must be 0"),
    ],
)
def test_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        tiny(**change)


@pytest.mark.parametrize(
    "arguments",
    [
        {"window": [3, 1], "pooling": "ifo", "tied": True, "kernel_dropout": 0.2},
        {"cell": "unrolled_lstm", "layers": 1},
    ],
)
def test_serving_model(arguments, tmp_path):
    """One token at a time, with the states handed on, gives the logits of the whole."""
    model = tiny(**arguments)
    model.logits_bias.assign(RNG.normal(size=11))
    x, _, _ = batch(steps=4)
    expected = model.predict(x, verbose=0)
    server = model.serving_model(time=1)
    for variable in model.weights:  # it has copies
        variable.assign(variable * 0)
    server.save(tmp_path / "server.keras")
    server = keras.saving.load_model(tmp_path / "server.keras")
    kept = [state for layer in model.recurrent for state in layer.states]
    assert [each.shape[1:] for each in server.inputs[1:]] == [s.shape[1:] for s in kept]
    states = [np.zeros((2, *each.shape[1:]), each.dtype) for each in server.inputs[1:]]
    for t in range(x.shape[1]):
        logits, *states = server.predict_on_batch([x[:, t : t + 1], *states])
        assert_close(f"logits of step {t}", logits[:, 0], expected[:, t], 1e-6)
