"""Two replicas of TensorFlow's MirroredStrategy share a batch, as one device would."""

import contextlib

import keras
import numpy as np
import pytest

from keras_qrnn.models import SentimentModel, TranslationModel
from tests.assertions import assert_close

pytestmark = pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="tf.distribute is TensorFlow's"
)
TOKENS = np.random.default_rng(0).integers(2, 9, (8, 5)).astype("int32")


def sentiment():
    """The second half of each batch has less weight than the first, or none at all."""
    model = SentimentModel(8, 4, 4, 1, dropout=0.0, l2=0.1, seed=0)
    labels = np.float32([0, 1, 1, 0, 1, 0, 1, 1])[:, None]
    return model, TOKENS, labels, np.float32([1, 1, 1, 0, 1, 1, 0, 0])


def translation():
    model = TranslationModel(9, 4, 4, 1, 2, seed=0)
    weights = np.ones((8, 5), "float32")
    weights[2:4, 2:] = weights[6:, 1:] = 0
    return model, (TOKENS, TOKENS), np.roll(TOKENS, -1, 1), weights


@pytest.mark.parametrize("make", [sentiment, translation])
def test_two_replicas_are_one_device(two_replicas, make):
    logs, steps = [], []
    for strategy in (None, two_replicas):
        keras.utils.set_random_seed(0)
        with strategy.scope() if strategy else contextlib.nullcontext():
            model, x, y, weights = make()
            model.build()
            # One device needs no graph: that saves seconds.
            model.compile(keras.optimizers.SGD(0.1), run_eagerly=strategy is None)
        before = model.get_weights()
        history = model.fit(
            x, y, 4, verbose=0, shuffle=False, sample_weight=weights
        ).history
        logs.append([value for (value,) in history.values()])
        steps.append([a - b for a, b in zip(model.get_weights(), before, strict=True)])
    assert_close("logs", logs[1], logs[0])
    for weight, got, expected in zip(model.weights, *steps[::-1], strict=True):
        assert_close(f"step of {weight.path}", got, expected)
