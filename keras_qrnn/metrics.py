"""Metrics of the models."""

from typing import Any

import keras
from keras import ops

from keras_qrnn._types import Tensor


@keras.saving.register_keras_serializable(package="keras_qrnn")
class Perplexity(keras.metrics.Metric):
    """Perplexity: `exp` of the mean cross-entropy, in nats, of all counted tokens.

    `LanguageModel` updates it with its loss. The lower, the better; the least
    possible value is 1.
    """

    def __init__(self, name: str = "perplexity", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.total = self.add_variable((), "zeros", name="total")
        self.count = self.add_variable((), "zeros", name="count")

    def update_state(self, cross_entropy: Tensor, count: Tensor) -> None:
        """Adds some tokens.

        Args:
            cross_entropy: the sum of their cross-entropies in nats, a scalar.
            count: their number, a scalar. It may be fractional: a sum of weights.
        """
        self.total.assign_add(cross_entropy)
        self.count.assign_add(count)

    def result(self) -> Tensor:
        return ops.exp(self.total / ops.maximum(self.count, 1.0))
