"""The arguments of all three models: NumPy's numbers, and values that are refused."""

import json

import keras
import numpy as np
import pytest

from keras_qrnn.models import LanguageModel, SentimentModel, TranslationModel

pytestmark = pytest.mark.one_backend
SIZES = {"vocab_size": 9, "emb_dim": 4, "units": 3, "layers": 2, "window": 1}
# Each with an argument of its own, and values that it refuses.
MODELS = [
    (LanguageModel, "batch_size", {"batch_size": 0, "tied": "no", "locked_dropout": 1}),
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
