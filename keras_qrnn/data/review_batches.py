"""Batches of reviews of similar lengths."""

from collections.abc import Sequence

import keras
import numpy as np

from keras_qrnn._checks import no_single_text, positive_integer
from keras_qrnn.data.batches import LengthBatches, padded, round_lengths
from keras_qrnn.data.vocabulary import Vocabulary

PADDING = 0  # the token behind the end of a review


def encode_reviews(
    texts: Sequence[str], vocabulary: Vocabulary, max_len: int | None = None
) -> list[np.ndarray]:
    """The tokens of each review: ids of the vocabulary plus 1. 0 stands for padding.

    Args:
        texts: reviews, words separated by blanks.
        vocabulary: of the words, `<unk>` among them.
        max_len: words that are kept of a longer review, its last ones. None: all.

    Returns:
        int32 arrays of shape `(words,)`.

    Raises:
        ValueError: if `texts` is a string, or `max_len` is not a positive integer.
    """
    no_single_text("texts", texts)
    last = slice(None)
    if max_len is not None:
        last = slice(-positive_integer("max_len", max_len), None)
    return [vocabulary.ids_of(text)[last] + 1 for text in texts]


class ReviewBatches(LengthBatches):
    """Batches of reviews: tokens, labels and weights.

    Tokens are int32 of shape `(batch, time)`. Labels are float32 of shape `(batch, 1)`,
    weights float32 of shape `(batch,)`.

    Args:
        labels: int array of shape `(reviews,)`.
        tokens: those of each review: see `encode_reviews`.
        batch_size, seed: see `LengthBatches`.
        multiple: Positive integer. The steps of each batch are a multiple of it.
            Lengths are rounded by `round_lengths`, and then up to such a multiple.

    Raises:
        ValueError: if `multiple` is not a positive integer.
    """

    def __init__(
        self,
        labels: np.ndarray,
        tokens: Sequence[np.ndarray],
        batch_size: int,
        seed: int | None = None,
        multiple: int = 1,
    ) -> None:
        multiple = positive_integer("multiple", multiple)
        self._tokens = tokens
        self._labels = np.asarray(labels, "float32")[:, None]
        if len(labels) != len(tokens):
            raise ValueError(
                "Arguments `labels` and `tokens` must have equal numbers of reviews. "
                f"Received: {len(labels)} and {len(tokens)}"
            )
        lengths = np.array([len(each) for each in tokens])
        self._time = -(-round_lengths(lengths) // multiple) * multiple
        super().__init__(self._time, batch_size, seed)
        self.spec = (
            keras.KerasTensor((batch_size, None), "int32"),
            keras.KerasTensor((batch_size, 1), "float32"),
            keras.KerasTensor((batch_size,), "float32"),
        )

    def batch(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        chosen, weights = self.rows(index)
        tokens = [self._tokens[n] for n in chosen]
        time = int(self._time[chosen].max())
        return padded(tokens, time, PADDING), self._labels[chosen], weights
