"""Dropout of whole words, for an embedding."""

from typing import Any

import keras
from keras import ops

from keras_qrnn import _checks
from keras_qrnn._types import Shape, Tensor


@keras.saving.register_keras_serializable(package="keras_qrnn")
class EmbeddingDropout(keras.layers.Layer):
    """Drops words in training: all embeddings of a dropped word become zero.

    This is dropout on the rows of the embedding matrix (arXiv 1512.05287; arXiv
    1708.02182, section 4.3). Each call draws the dropped words anew. It scales the
    embeddings of the other words by `1 / (1 - rate)`. Only the embeddings of `tokens`
    are multiplied, not the whole matrix.

    Args:
        vocab_size: Positive integer, number of words.
        rate: Probability of dropping a word, in [0, 1).
        seed: Seed of the draws, an integer. None draws a seed.

    Call arguments:
        embedded: float tensor of shape `(..., features)`, the embeddings of
            `tokens`.
        tokens: int tensor of shape `(...)`, each in `[0, vocab_size)`.
        training: Boolean, whether words are dropped.

    Output shape:
        The shape and dtype of `embedded`.

    Raises:
        ValueError: if `vocab_size` is not a positive integer or `rate` is not in
            [0, 1).
    """

    def __init__(
        self, vocab_size: int, rate: float, seed: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.vocab_size = _checks.positive_integer("vocab_size", vocab_size)
        self.rate = _checks.rate("rate", rate)
        self.seed = seed
        self.supports_masking = True
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.built = True

    def call(self, embedded: Tensor, tokens: Tensor, training: bool = False) -> Tensor:
        if not (training and self.rate):
            return embedded
        scale = keras.random.dropout(
            ops.ones((self.vocab_size,), embedded.dtype),
            self.rate,
            seed=self.seed_generator,
        )
        return embedded * ops.take(scale, tokens, axis=0)[..., None]

    def compute_output_shape(
        self, embedded_shape: Shape, tokens_shape: Shape | None = None
    ) -> Shape:
        return embedded_shape

    def get_config(self) -> dict[str, Any]:
        own = {"vocab_size": self.vocab_size, "rate": self.rate, "seed": self.seed}
        return {**super().get_config(), **own}
