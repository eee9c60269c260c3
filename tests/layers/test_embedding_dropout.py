"""EmbeddingDropout: what is dropped, and the scale of the rest."""

import keras
import numpy as np
import pytest

from keras_qrnn.layers import QRNN, EmbeddingDropout

RNG = np.random.default_rng(0)


def test_embedding_dropout_passes_the_mask():
    tokens = keras.Input((None,), dtype="int32")
    embedded = keras.layers.Embedding(50, 4, mask_zero=True)(tokens)
    dropped = EmbeddingDropout(50, 0.3)(embedded, tokens)
    model = keras.Model(tokens, QRNN(3)(dropped))
    padded = np.array([[3, 4, 5, 0, 0]])
    whole = [keras.ops.convert_to_numpy(model(x)) for x in (padded, padded[:, :3])]
    assert np.allclose(*whole, atol=1e-6)


def test_embedding_dropout_drops_words():
    layer = EmbeddingDropout(50, 0.3, seed=0)
    tokens = RNG.integers(0, 50, (4, 200)).astype("int32")
    ones = np.ones((4, 200, 3), "float32")
    scale = keras.ops.convert_to_numpy(layer(ones, tokens, training=True))
    by_word = [np.unique(scale[tokens == word]) for word in np.unique(tokens)]
    assert all(len(values) == 1 for values in by_word)
    values = np.concatenate(by_word)
    assert np.isclose(values, 0).sum() + np.isclose(values, 1 / 0.7).sum() == 50
    assert 5 <= np.isclose(values, 0).sum() <= 25
    again = keras.ops.convert_to_numpy(layer(ones, tokens, training=True))
    assert not np.array_equal(again, scale)  # another draw
    assert np.array_equal(keras.ops.convert_to_numpy(layer(ones, tokens)), ones)
    copy = EmbeddingDropout.from_config(layer.get_config())
    assert (copy.vocab_size, copy.rate, copy.seed) == (50, 0.3, 0)
    with pytest.raises(ValueError, match=r"`rate` must be in \[0, 1\)"):
        EmbeddingDropout(50, 1.0)
