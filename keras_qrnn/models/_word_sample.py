"""A sample of the words of a vocabulary, for the softmax of a training step."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_qrnn._types import Tensor


class WordSample(keras.layers.Layer):
    """Draws different words of a vocabulary, the frequent ones always.

    Word k is drawn with probability `min(1, c / (k + 1))`. The constant c is such that
    `size` words are drawn. So the ids must be in the order of the words' frequencies,
    the most frequent word first. A word is drawn once at most: the draws are those of
    systematic sampling (Madow 1949).

    It is a layer so that a model keeps the state of its random numbers.

    Args:
        vocab_size: Positive integer, number of words.
        size: Positive integer of at most `vocab_size`, number of words drawn.
        seed: Seed of the draws.
    """

    def __init__(
        self, vocab_size: int, size: int, seed: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.size = size
        self.seed_generator = keras.random.SeedGenerator(seed)
        # `_sums` are the sums of the words' probabilities, in units of `1 / _parts`. In
        # whole numbers they are exact.
        self._parts = 2 ** (30 - self.size.bit_length())
        sums = np.cumsum(_probabilities(vocab_size, size)) * self._parts
        self._sums = np.rint(sums).astype("int32")
        probabilities = np.diff(self._sums, prepend=0) / self._parts
        self._logs = np.log(np.maximum(probabilities, 1 / self._parts), dtype="float32")
        self.built = True

    def draw(self) -> tuple[Tensor, Tensor]:
        """The ids of other words at each call.

        Returns:
            The ids, an int32 tensor of shape `(size,)`, in ascending order; and the
            logarithms of their probabilities, a float32 tensor of shape `(size,)`.
        """
        first = keras.random.randint((), 0, self._parts, seed=self.seed_generator)
        points = first + ops.arange(self.size, dtype="int32") * self._parts
        ids = ops.searchsorted(ops.convert_to_tensor(self._sums), points, side="right")
        ids = ops.cast(ids, "int32")
        return ids, ops.take(ops.convert_to_tensor(self._logs), ids)


def _probabilities(words: int, size: int) -> np.ndarray:
    """`min(1, c / (k + 1))` for each word k, float64. Their sum is `size`."""
    shares = 1 / np.arange(1, words + 1)
    tails = np.cumsum(shares[::-1])[::-1]  # the sum of `shares` from a word on
    # The first word that is not always drawn: from it on, no probability is above 1.
    always = 0
    while always < size and (size - always) * shares[always] > tails[always]:
        always += 1
    probabilities = np.ones(words)
    if always < words:
        probabilities[always:] = (size - always) * shares[always:] / tails[always]
    return probabilities
