"""The cross-entropy of a softmax against the reference."""

import sys

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_qrnn.ops.backend import backend as active
from tests import reference
from tests.assertions import assert_close
from tests.gradients import second_gradients, value_and_gradients

differentiable = pytest.mark.skipif(
    keras.config.backend() == "numpy", reason="the NumPy backend has no gradients"
)
# The module that has the backend's cross-entropy.
HOME_OF_THE_LOSS = sys.modules[active.cross_entropy.__module__]

# Each shape is compiled.
shapes = st.sampled_from([(1, 1, 1), (2, 7, 5), (3, 1, 7), (1, 4, 2)])
pieces = st.sampled_from([1, 30, 2**19])
few = settings(max_examples=10)


@pytest.mark.parametrize("target", [3, -1, -100])
def test_cross_entropy_of_no_class(target):
    if keras.config.backend() == "torch":
        import torch

        if torch.cuda.is_available():
            pytest.skip("an assertion on a GPU ends its use by the process")
    logits, targets = ops.zeros((1, 2, 3)), ops.convert_to_tensor([[2, target]])
    if keras.config.backend() in ("torch", "numpy"):
        with pytest.raises((IndexError, RuntimeError)):
            active.cross_entropy(logits, targets)
        return
    losses = active.cross_entropy(logits, targets)  # XLA raises no errors
    assert np.isfinite(losses[0, 0])
    assert np.isnan(losses[0, 1])


def cross_entropy_arguments(batch, time, classes):
    rng = np.random.default_rng(batch + time + classes)
    logits = rng.normal(0, 20, (batch, time, classes)).astype("float32")
    return logits, rng.integers(0, classes, (batch, time)).astype("int32")


@few
@given(shape=shapes, piece=pieces)
def test_cross_entropy_values(shape, piece):
    logits, targets = cross_entropy_arguments(*shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HOME_OF_THE_LOSS, "PIECE_LOGITS", piece, raising=False)
        losses = active.cross_entropy(*map(ops.convert_to_tensor, (logits, targets)))
    assert_close("losses", losses, reference.cross_entropy(logits, targets)[0])


@differentiable
@few
@given(shape=shapes, piece=pieces)
def test_cross_entropy_gradient(shape, piece):
    logits, targets = cross_entropy_arguments(*shape)
    weight = np.random.default_rng(9).normal(size=targets.shape).astype("float32")

    def loss(logits):
        losses = active.cross_entropy(logits, ops.convert_to_tensor(targets))
        return ops.sum(losses * ops.convert_to_tensor(weight))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HOME_OF_THE_LOSS, "PIECE_LOGITS", piece, raising=False)
        _, [gradient] = value_and_gradients(loss, [logits])
    _, by_logits = reference.cross_entropy(logits, targets)
    assert_close("d_logits", gradient, weight[..., None] * by_logits)


@differentiable
def test_second_gradients_of_the_cross_entropy():
    logits, targets = cross_entropy_arguments(2, 3, 4)
    logits /= 20

    def loss(cross_entropy):
        return lambda logits: ops.sum(ops.sin(cross_entropy(logits)))

    def plain(logits):
        targeted = ops.one_hot(targets, 4)
        return ops.logsumexp(logits, axis=-1) - ops.sum(targeted * logits, axis=-1)

    def fast(logits):
        return active.cross_entropy(logits, ops.convert_to_tensor(targets))

    [got], [expected] = (second_gradients(loss(f), [logits]) for f in (fast, plain))
    assert_close("second derivative by logits", got, expected)
