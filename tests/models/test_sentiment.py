"""The sentiment classifier against its layers, with padding, and saved."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_qrnn.data import Vocabulary
from keras_qrnn.models import SentimentClassifier
from keras_qrnn.models.sentiment import SentimentModel
from tests import reference
from tests.assertions import assert_close

BACKEND = keras.config.backend()
trains = pytest.mark.skipif(BACKEND == "numpy", reason="NumPy does not train")
TOKENS = np.array([[1, 2, 3, 4, 5], [6, 7, 8, 0, 0]], "int32")
SIZES = {"vocab_size": 8, "emb_dim": 3, "units": 4, "layers": 2, "dropout": 0.0}


def build(**changed):
    model = SentimentModel(**(SIZES | changed))
    model.build()
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if weight.dtype != "uint32" and "seed" not in weight.path:
            weight.assign(rng.normal(size=weight.shape))
    return model


def to_numpy(tensor):
    return ops.convert_to_numpy(ops.cast(tensor, "float64"))


@pytest.mark.parametrize("encoding", ["last", "last_mean_max"])
@pytest.mark.parametrize("dense", [True, False])
def test_the_equations(dense, encoding):
    """One review at a time, without padding, in float64, in plain NumPy."""
    model = build(dense=dense, encoding=encoding, window=[3, 2], dtype="float64")
    found = to_numpy(model(TOKENS))
    embedding = to_numpy(model.embedding.embeddings)
    kernel, bias = map(to_numpy, model.logit.weights)
    for tokens, logit in zip(TOKENS, found, strict=True):
        x = embedding[tokens[tokens > 0]][None]
        for layer in model.recurrent:
            weights = [to_numpy(weight) for weight in layer.weights]
            outputs = reference.qrnn(x, *weights).outputs
            x = np.concatenate([x, outputs], axis=-1) if dense else outputs
        parts = [outputs[0, -1]]
        if encoding == "last_mean_max":
            parts += [outputs[0].mean(0), outputs[0].max(0)]
        # There Keras's `where` and `Dense` give float64 with the digits of float32.
        tolerance = 1e-6 if BACKEND in ("numpy", "torch") else 1e-10
        assert_close("logit", logit, np.concatenate(parts) @ kernel + bias, tolerance)


@pytest.mark.parametrize("cell", ["qrnn", "lstm"])
@pytest.mark.parametrize("pooling", ["f", "fo", "ifo"])
def test_the_last_states_and_the_padding(cell, pooling):
    if cell == "lstm" and pooling != "fo":
        pytest.skip("an LSTM has no pooling")
    if cell == "lstm" and BACKEND not in ("torch", "numpy"):
        pytest.skip("Keras's LSTM takes seconds to compile")
    zoneout = 0.3 if cell == "qrnn" else 0.0
    model = build(cell=cell, pooling=pooling, zoneout=zoneout)
    logits = to_numpy(model(TOKENS))
    padded = np.pad(TOKENS, ((0, 0), (0, 3)))
    assert_close("padded", to_numpy(model(padded)), logits, 1e-5)
    assert_close("alone", to_numpy(model(TOKENS[1:, :3])), logits[1:], 1e-5)
    states = to_numpy(model.states(TOKENS[:1]))
    assert states.shape == (1, 5, 4)
    if cell == "lstm" or pooling == "f":  # there the states are the outputs
        kernel, bias = map(to_numpy, model.logit.weights)
        assert_close("states", states[:, -1] @ kernel + bias, logits[:1], 1e-5)
    else:
        _, _, o, *_ = model.recurrent[-1].compute_gates(second_input(model))
        encoding = to_numpy(o)[:, -1] * states[:, -1]
        kernel, bias = map(to_numpy, model.logit.weights)
        assert_close("states", encoding @ kernel + bias, logits[:1], 1e-5)


def second_input(model):
    first = model.embedding(TOKENS[:1])
    return ops.concatenate([first, model.recurrent[0](first)], axis=-1)


def test_the_encoding_reads_nothing_behind_a_review():
    """There cuDNN's LSTM gives zeros, on TensorFlow with a GPU."""
    model = build(cell="lstm", encoding="last_mean_max")
    outputs = np.random.default_rng(0).normal(size=(2, 5, 4)).astype("float32")
    mask = TOKENS != 0
    found = model._encode(ops.convert_to_tensor(outputs), ops.convert_to_tensor(mask))
    last = [outputs[0, 4], outputs[1, 2]]
    assert np.array_equal(ops.convert_to_numpy(found)[:, :4], last)


@trains
@pytest.mark.parametrize("cell", ["qrnn", "lstm"])
def test_saved_and_loaded(tmp_path, cell):
    if cell == "lstm" and BACKEND != "torch":
        pytest.skip("Keras's LSTM takes seconds to compile")
    model = build(
        cell=cell, dtype="mixed_bfloat16", vocabulary="abc", seed=3,
        window=np.int64(2), max_len=9, cased=True,
    )  # fmt: skip
    model.compile("rmsprop")
    loss = model.train_on_batch(TOKENS, np.ones((2, 1)), np.ones(2))
    assert np.isfinite(loss).all()
    assert model(TOKENS).dtype == model.logit.variable_dtype or BACKEND != "numpy"
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    data = TOKENS, np.ones((2, 1))
    assert loaded.evaluate(*data, verbose=0) == model.evaluate(*data, verbose=0)
    assert loaded.get_config() == model.get_config()
    assert loaded.max_len == 9 and loaded.cased
    assert np.array_equal(to_numpy(loaded(TOKENS)), to_numpy(model(TOKENS)))
    copy = model.copy()
    assert np.array_equal(to_numpy(copy(TOKENS)), to_numpy(model(TOKENS)))


@trains
def test_the_loss_is_weighted_and_regularized():
    model = build(l2=0.5)
    model.compile("sgd")
    labels, weights = np.array([[1.0], [0.0]]), np.array([1.0, 0.0])
    logs = model.test_on_batch(TOKENS, labels, weights, return_dict=True)
    logit = to_numpy(model(TOKENS))[0, 0]
    kernels = [layer.kernel for layer in (*model.recurrent, model.logit)]
    penalty = 0.5 * sum(np.square(to_numpy(kernel)).sum() for kernel in kernels)
    expected = np.log1p(np.exp(-logit))  # the second review has no weight
    assert logs["loss"] == pytest.approx(expected + penalty, rel=1e-5)
    assert logs["cross_entropy"] == pytest.approx(expected, rel=1e-5)
    assert logs["accuracy"] == float(logit > 0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"cell": "gru"}, "`cell` must be one of 'qrnn', 'lstm'"),
        ({"encoding": "first"}, "`encoding` must be one of 'last'"),
        ({"cell": "lstm", "zoneout": 0.1}, "`zoneout` goes with cell='qrnn'"),
        ({"cell": "lstm", "kernel_dropout": 0.1}, "`kernel_dropout` goes with"),
        ({"l2": -1.0}, "`l2` must be 0 or a positive number"),
        ({"dropout": 1.0}, "`dropout` must be in"),
        ({"window": [1, 2, 3]}, "`window`"),
        ({"vocab_size": 0}, "`vocab_size`"),
        ({"max_len": 0}, "`max_len` must be a positive integer"),
        ({"cased": "no"}, "`cased` must be True or False. Received: cased='no'"),
        ({"dense": 2}, "`dense` must be True or False"),
        ({"train_embedding": None}, "`train_embedding` must be True or False"),
    ],
)
def test_bad_arguments(changed, message):
    with pytest.raises(ValueError, match=message):
        SentimentModel(**(SIZES | changed))


@pytest.mark.one_backend
def test_the_classifier_refuses_a_string_and_a_broken_model():
    """Only a text without words has NaN."""
    model = build()
    vocabulary = Vocabulary(["<eos>", "<unk>", *"abcdef"])
    classifier = SentimentClassifier(model, vocabulary)
    assert np.isnan(classifier.probabilities(["a b", "", "c"])).tolist() == [0, 1, 0]
    for method in (classifier.encode, classifier.probabilities):
        with pytest.raises(ValueError, match=r"`texts` must be a list.*: a string"):
            method("a b")
    # One row of the embedding is broken: that of "b".
    embedding = np.array(to_numpy(model.embedding.embeddings))
    embedding[vocabulary.id_of("b") + 1] = np.nan
    model.embedding.embeddings.assign(embedding)
    assert not np.isnan(classifier.probabilities(["a", "c"])).any()
    with pytest.raises(ValueError, match=r"must give numbers.*nan for the text 'c b'"):
        classifier.probabilities(["", "a", "c b"])
    assert np.isnan(classifier.probabilities([""])).all()
