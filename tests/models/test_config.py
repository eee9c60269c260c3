"""The arguments of all three models: NumPy's numbers, and values that are refused."""

import json

import keras
import numpy as np
import pytest

from keras_qrnn.models import LanguageModel, SentimentModel, TranslationModel
from tests.assertions import assert_close

pytestmark = pytest.mark.one_backend
SIZES = {"vocab_size": 9, "emb_dim": 4, "units": 3, "layers": 2, "window": 1}
# Each with an argument of its own, and values that it refuses.
MODELS = [
    (LanguageModel, "batch_size", {"batch_size": 0, "tied": "no", "locked_dropout": 2}),
    (SentimentModel, "max_len", {"max_len": 0}),
    (TranslationModel, "longest", {"longest": 0, "first_window": 1.5}),
]


@pytest.mark.parametrize(("kind", "own", "refused"), MODELS)
def test_numbers_of_numpy(kind, own, refused):
    """As in `LanguageModel(tokens.max() + 1)`."""
    sizes = SIZES | {own: 2}
    expected = kind(**sizes, name="model").get_config()
    model = kind(**{n: np.int64(v) for n, v in sizes.items()}, name="model")
    saved = json.dumps(keras.saving.serialize_keras_object(model))
    found = keras.saving.deserialize_keras_object(json.loads(saved)).get_config()
    for name in sizes:
        assert np.equal(found[name], expected[name]).all(), name
    for name, value in refused.items():
        with pytest.raises(ValueError, match=f"Argument `{name}` must be"):
            kind(**SIZES | {name: value})


@pytest.mark.parametrize("kind", [each[0] for each in MODELS])
def test_no_quantization(kind):
    model = kind(**SIZES)
    model.build()
    with pytest.raises(NotImplementedError, match=f"{kind.__name__} cannot be quant"):
        model.quantize("int8")


def test_a_served_model_can_be_quantized(tmp_path):
    """The embedding and the softmax are. Tied, the one has another scale."""
    server = LanguageModel(**SIZES, tied=True, seed=0).serving_model()
    tokens, *states = server.inputs
    inputs = [np.ones((2, 3), tokens.dtype)]
    inputs += [np.zeros((2, *each.shape[1:]), each.dtype) for each in states]
    expected = server.predict(inputs, verbose=0)[0]
    server.quantize("int8")
    assert server.get_layer("embedding").embeddings.dtype == "int8"
    server.save(tmp_path / "server.keras")
    loaded = keras.saving.load_model(tmp_path / "server.keras")
    for each in (server, loaded):
        assert_close("logits", each.predict(inputs, verbose=0)[0], expected, 0.002)
