"""The translation model against a reference that reads like the equations."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_qrnn.data.characters import CharacterVocabulary
from keras_qrnn.data.pair_batches import source_batch
from keras_qrnn.models.beam_search import compiled
from keras_qrnn.models.translation import TranslationModel
from keras_qrnn.models.translator import Translator
from tests.assertions import assert_close
from tests.gradients import value_and_gradients
from tests.reference import cross_entropy, qrnn, sigmoid

# Without a switch for the whole process, JAX computes in float32.
DOUBLE = "float32" if keras.config.backend() == "jax" else "float64"
# Keras multiplies float64 matrices in float32 on PyTorch and NumPy.
EXACT = 1e-5 if DOUBLE == "float32" else 1e-6
# What is compiled for each shape is tested in fewer shapes.
COMPILED = keras.config.backend() in ("jax", "tensorflow")
differentiable = pytest.mark.skipif(
    keras.config.backend() == "numpy", reason="the NumPy backend has no gradients"
)
VOCABULARY = CharacterVocabulary(["<pad>", "<eos>", "<unk>", *"abcd"])
# Sources of unequal lengths, one shorter than the first window; `<eos>` is 1.
SOURCES = [[3, 4, 6, 3, 5, 1], [5, 1], [6, 6, 4, 1]]
TARGETS = [[4, 4, 1], [1], [5, 3, 6, 4, 1]]


def padded(rows, width=6):
    return np.array([row + [0] * (width - len(row)) for row in rows], "int32")


SOURCE = source_batch([np.array(row) for row in SOURCES], 4)
TARGET = padded(TARGETS)
TOKENS = padded([[1, *row[:-1]] for row in TARGETS])
WEIGHTS = (TARGET > 0).astype("float32")


def make(cell="qrnn", dtype="float32", **options):
    sizes = {"emb_dim": 3, "units": 4, "layers": 2, "first_window": 5, "window": 2}
    model = TranslationModel(len(VOCABULARY), cell=cell, dtype=dtype, **sizes | options)
    model.build()
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(rng.normal(0, 0.7, weight.shape))
    return model


def reference_logits(weights, source, tokens):
    """Equations 1, 4, 7 and 8 for one sentence without padding.

    Args:
        weights: by path, the part before the first slash left out.
        source: ids as the encoder reads them.
        tokens: ids that the decoder reads.
    """

    def layer(name):
        names = ("kernel", "bias", "context_kernel")
        return [weights.get(f"{name}/{each}") for each in names]

    x = weights["source_embedding/embeddings"][source][None]
    contexts = []
    for n in range(2):
        kernel, bias, _ = layer(f"encoder_{n}")
        x = qrnn(x, kernel, bias, padding="same").outputs
        contexts.append(x[0, -1])
    encoder_outputs = x[0]
    x = weights["target_embedding/embeddings"][tokens][None]
    kernel, bias, context_kernel = layer("decoder_0")
    x = qrnn(x, kernel, bias + contexts[0] @ context_kernel).outputs
    kernel, bias, context_kernel = layer("decoder_1")
    bias = bias + contexts[1] @ context_kernel
    units = len(bias) // 3
    cells = qrnn(x, kernel[..., : 2 * units], bias[: 2 * units], "f").outputs[0]
    W_k, W_c = np.split(weights["decoder_1/output_kernel"], 2)
    before = np.zeros(x.shape[-1])
    logits = []
    for c, now in zip(cells, x[0], strict=True):
        y_o = bias[2 * units :] + before @ kernel[0, :, 2 * units :]
        o = sigmoid(y_o + now @ kernel[1, :, 2 * units :])
        scores = np.array([c @ h for h in encoder_outputs])
        a = np.exp(scores) / np.exp(scores).sum()
        k = sum(a_s * h for a_s, h in zip(a, encoder_outputs, strict=True))
        h = o * (k @ W_k + c @ W_c)
        logits.append(h @ weights["logits/kernel"] + weights["logits_bias"])
        before = now
    return np.stack(logits)


def reference_loss(weights):
    total = 0.0
    for source, target in zip(SOURCES, TARGETS, strict=True):
        logits = reference_logits(weights, source[::-1], [1, *target[:-1]])
        total += cross_entropy(logits, np.array(target))[0].sum()
    return total / WEIGHTS.sum()


def named(model):
    return {
        variable.path.partition("/")[2]: np.array(ops.convert_to_numpy(variable))
        for variable in model.weights
    }


def logits_of(model, source=SOURCE, tokens=TOKENS):
    run = compiled(lambda *inputs: model(inputs), model.variables)
    inputs = ops.convert_to_tensor(source), ops.convert_to_tensor(tokens)
    return ops.convert_to_numpy(run(*inputs))


def test_values():
    model = make(dtype=DOUBLE)
    got, weights = logits_of(model), named(model)
    for n, (source, target) in enumerate(zip(SOURCES, TARGETS, strict=True)):
        expected = reference_logits(weights, source[::-1], [1, *target[:-1]])
        assert_close(f"logits of {n}", got[n, : len(target)], expected, EXACT)


@differentiable
def test_gradients():
    """By each weight, along a random direction, against the reference's differences."""
    model = make(dtype=DOUBLE)
    weights = named(model)
    variables = model.trainable_variables
    source, tokens, target = map(ops.convert_to_tensor, (SOURCE, TOKENS, TARGET))
    assert set(weights) == {v.path.partition("/")[2] for v in variables}

    def loss(*values):
        with keras.StatelessScope(state_mapping=zip(variables, values, strict=True)):
            logits = model((source, tokens), training=True)
            return model.compute_loss(None, target, logits, WEIGHTS)

    value, gradients = value_and_gradients(loss, list(weights.values()))
    np.testing.assert_allclose(value, reference_loss(weights), rtol=1e-5)
    rng, step = np.random.default_rng(1), 1e-5
    for name, gradient in zip(weights, gradients, strict=True):
        direction = rng.normal(size=gradient.shape)
        difference = [
            reference_loss(weights | {name: weights[name] + sign * step * direction})
            for sign in (1, -1)
        ]
        expected = (difference[0] - difference[1]) / (2 * step)
        assert_close(f"d {name}", np.sum(gradient * direction), expected, 1e-4)


@pytest.mark.parametrize("cell", ["qrnn", "lstm"])
def test_padding_and_steps(cell):
    """Neither other sentences, nor padding, nor pieces change a translation."""
    model = make(cell)
    whole = logits_of(model)
    source, length = np.array([SOURCES[2][::-1]], "int32"), len(TARGETS[2])
    alone = logits_of(model, source, TOKENS[2:, :length])
    assert_close("alone", whole[2, :length], alone[0])
    step = compiled(model.step, model.variables)
    memory, states = compiled(model.encode, model.variables)(
        ops.convert_to_tensor(SOURCE)
    )
    for t in range(TOKENS.shape[1]):
        log_probabilities, states = step(
            ops.convert_to_tensor(TOKENS[:, t]), states, memory
        )
        expected = ops.convert_to_numpy(ops.log_softmax(whole[:, t]))
        assert_close(f"step {t}", log_probabilities, expected)


def test_saving(tmp_path):
    model = make(vocabulary="abc", longest=9, seed=3, dropout=0.1, zoneout=0.1)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    assert loaded.get_config() == model.get_config() and loaded.longest == 9
    for twin in (loaded, model.copy()):
        for got, expected in zip(twin.weights, model.weights, strict=True):
            got, expected = map(ops.convert_to_numpy, (got, expected))
            np.testing.assert_array_equal(got, expected)


@differentiable
def test_loss_is_a_mean_over_characters():
    model = make()
    model.compile()
    inputs = (SOURCE, TOKENS)
    logs = model.test_on_batch(inputs, TARGET, WEIGHTS, return_dict=True)
    expected = reference_loss(named(model))
    np.testing.assert_allclose(logs["loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(logs["perplexity"], np.exp(expected), rtol=1e-5)


def test_mixed_precision():
    model = make(dtype="mixed_bfloat16")
    logits = logits_of(model)
    assert logits.dtype == "float32"
    for n, (source, target) in enumerate(zip(SOURCES, TARGETS, strict=True)):
        expected = reference_logits(named(model), source[::-1], [1, *target[:-1]])
        assert_close(f"logits of {n}", logits[n, : len(target)], expected, 0.1)
    assert {v.dtype for v in model.weights} == {"float32"}


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cell": "gru"}, "`cell` must be one of 'qrnn', 'lstm'"),
        ({"layers": 0}, "`layers` must be a positive integer"),
        ({"dropout": 1.0}, r"`dropout` must be in \[0, 1\)"),
        ({"zoneout": -0.1}, r"`zoneout` must be in \[0, 1\)"),
        ({"pooling": "of"}, "`pooling` must be one of"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        TranslationModel(7, **options)


# Translation


def greedy(run, sentence, most):
    """The likeliest character of each step; the model reads all from the start."""
    source = source_batch(VOCABULARY.encode_each([sentence]), 8)
    ids = []
    while len(ids) < most and 1 not in ids:
        tokens = padded([[1, *ids]], most)
        inputs = ops.convert_to_tensor(source), ops.convert_to_tensor(tokens)
        logits = np.array(ops.convert_to_numpy(run(*inputs)))[0, len(ids)]
        logits[[0, 2]] = -np.inf  # <pad> and <unk> are never written
        ids.append(int(logits.argmax()))
    return VOCABULARY.text_of(ids)


def test_translator():
    model = make()
    model.logits_bias.assign([0, -1, 9, 0, 0, 0, 0])
    sentences = ["abacd", "", "d", "axb", "c"]
    translator = Translator(model, VOCABULARY, beam=1, batch_size=3, multiple=8)
    for method in (translator.translate, translator.search):
        with pytest.raises(ValueError, match=r"`sentences` must be a list.*: a string"):
            method("abc")
    found = translator.translate(sentences)
    assert found[1] == "" and any(found) and not any("\ufffd" in f for f in found)
    run = compiled(lambda *inputs: model(inputs), model.variables)
    for sentence, translation in zip(sentences, found, strict=True):
        if sentence:
            assert translation[:5] == greedy(run, sentence, 5)
    if COMPILED:
        return
    wide = Translator(model, VOCABULARY, beam=3, batch_size=3, multiple=8)
    together = wide.search([sentences[0], sentences[2]])
    for sentence, hypotheses in zip(sentences[::2], together, strict=False):
        (alone,) = wide.search([sentence])
        assert [h.ids for h in alone] == [h.ids for h in hypotheses]


@pytest.mark.parametrize("cell", ["qrnn"] if COMPILED else ["qrnn", "lstm"])
def test_attention(cell):
    """Of the same form for both cells: unscaled dot products with the encoder."""
    model = make(cell)
    translator = Translator(model, VOCABULARY, beam=1, batch_size=1, multiple=8)
    attention = translator.attention("abacd")
    assert attention.source == ["a", "b", "a", "c", "d", "<eos>"]
    assert attention.target[-1] == "<eos>"
    assert attention.weights.shape == (len(attention.target), 6)
    np.testing.assert_allclose(attention.weights.sum(axis=1), 1, rtol=1e-5)
