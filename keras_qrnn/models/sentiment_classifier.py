"""The sentiment of texts by a trained model, in batches."""

from collections.abc import Sequence
from textwrap import shorten

import numpy as np

from keras_qrnn._checks import no_single_text, positive_integer
from keras_qrnn.data.review_batches import ReviewBatches, encode_reviews
from keras_qrnn.data.tokens import tokenize
from keras_qrnn.data.vocabulary import Vocabulary
from keras_qrnn.models.sentiment import SentimentModel


class SentimentClassifier:
    """Computes how likely texts are positive.

    Texts are cut into words as those that the model was trained on: `model.cased` and
    `model.max_len` say how. They are classified in batches, padded to multiples of
    `multiple` words. So few shapes are compiled on JAX and TensorFlow.

    Args:
        model: a built model.
        vocabulary: of the model. Words that it lacks become `<unk>`.
        batch_size: Positive integer, texts of a batch. It changes speed and memory, not
            the result.
        multiple: Positive integer, see above.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        model: SentimentModel,
        vocabulary: Vocabulary,
        batch_size: int = 24,
        multiple: int = 32,
    ) -> None:
        self.model = model
        self.vocabulary = vocabulary
        self.batch_size = positive_integer("batch_size", batch_size)
        self._multiple = positive_integer("multiple", multiple)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The tokens of each text, int32 of shape `(words,)`: see `encode_reviews`.

        Raises:
            ValueError: if `texts` is a string.
        """
        no_single_text("texts", texts)
        cut = [" ".join(tokenize(text, self.model.cased)) for text in texts]
        return encode_reviews(cut, self.vocabulary, self.model.max_len)

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """The probability that each text is positive.

        Returns:
            float64 array of shape `(texts,)`. NaN for a text without words, and for no
            other.

        Raises:
            ValueError: if `texts` is a string, or if the model gives NaN for a text.
        """
        tokens = self.encode(texts)
        chosen = [n for n, each in enumerate(tokens) if len(each)]
        found = np.full(len(tokens), np.nan)
        if chosen:
            # A single text is computed alone, any other number as whole batches.
            rows = 1 if len(chosen) == 1 else self.batch_size
            given = [tokens[n] for n in chosen]
            logits = logits_of(self.model, given, rows, self._multiple)
            if np.isnan(logits).any():
                text = texts[chosen[int(np.isnan(logits).argmax())]]
                raise ValueError(
                    "The model must give numbers: its weights may be broken. "
                    f"Received: nan for the text {shorten(text, 60)!r}"
                )
            # The sigmoid: of large numbers tanh does not overflow, as exp does.
            found[chosen] = 0.5 + 0.5 * np.tanh(0.5 * logits.astype("float64"))
        return found


def logits_of(
    model: SentimentModel,
    tokens: Sequence[np.ndarray],
    batch_size: int,
    multiple: int = 1,
) -> np.ndarray:
    """The logit of each review, float32 of shape `(reviews,)`.

    Args:
        model: a built model.
        tokens: of each review, which has at least one word: see `encode_reviews`.
        batch_size: rows of a batch. It changes speed and memory, not the result.
        multiple: see `ReviewBatches`.
    """
    labels = np.zeros(len(tokens))  # not used
    batches = ReviewBatches(labels, tokens, batch_size, multiple=multiple)
    logits = np.zeros(len(tokens), "float32")
    for index in range(len(batches)):
        chosen, _ = batches.rows(index)
        logits[chosen] = model.predict_on_batch(batches[index][0])[:, 0]
    return logits
