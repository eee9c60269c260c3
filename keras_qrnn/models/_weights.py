"""Copies of weights."""

from collections.abc import Iterable

import keras
from keras import ops

from keras_qrnn._types import Tensor


def copy_weights(layer: keras.layers.Layer, values: Iterable[Tensor]) -> None:
    """Assigns copies of `values` to all weights of a layer or model, in their order.

    Raises:
        ValueError: if the number of values or a shape differs.
    """
    for variable, value in zip(layer.weights, values, strict=True):
        # A copy is needed: on JAX a training step frees the buffers of its weights.
        variable.assign(ops.copy(value))
