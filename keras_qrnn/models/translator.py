"""Translation of sentences with a trained model, in batches."""

from collections.abc import Sequence
from dataclasses import dataclass

import keras
import numpy as np

from keras_qrnn._checks import no_single_text, positive_integer
from keras_qrnn.data.characters import CharacterVocabulary
from keras_qrnn.data.pair_batches import source_batch, target_batch
from keras_qrnn.models.beam_search import BeamSearch, Hypothesis, compiled
from keras_qrnn.models.translation import TranslationModel

LONGER = 5  # T_trg of the paper: characters more than the source has
# The search ends where a translation has this many times the characters of its source,
# and some more for short sources.
MOST_TIMES, MOST_MORE = 2, 30


class Translator:
    """Translates sentences.

    Sentences are translated in batches of a fixed number of rows, padded to multiples
    of `multiple` characters. So few shapes are compiled on JAX and TensorFlow.

    Args:
        model: a built model.
        vocabulary: of the model. Characters that it lacks become `<unk>`.
        beam: Positive integer, width of the beam. 1 is the greedy search. Defaults to
            the paper's `8`.
        alpha: strength of the length normalization: see `BeamSearch`.
        batch_size: Positive integer, sentences of a batch.
        multiple: Positive integer, see above.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        model: TranslationModel,
        vocabulary: CharacterVocabulary,
        beam: int = 8,
        alpha: float = 0.6,
        batch_size: int = 16,
        multiple: int = 32,
    ) -> None:
        self.model = model
        self.vocabulary = vocabulary
        self.batch_size = positive_integer("batch_size", batch_size)
        self._multiple = positive_integer("multiple", multiple)
        self._encode = compiled(model.encode, model.variables)
        self._decode = compiled(model.decode, model.variables)
        self._search = BeamSearch(
            model.step,
            beam,
            alpha,
            start=vocabulary.eos,
            end=vocabulary.eos,
            forbidden=(vocabulary.pad, vocabulary.unknown),
            variables=model.variables,
        )

    def translate(self, sentences: Sequence[str]) -> list[str]:
        """The translation of each sentence. That of an empty sentence is empty.

        Sentences of similar lengths are translated together. The results have the order
        of `sentences`.

        Raises:
            ValueError: if `sentences` is a string, or if the model gives NaN.
        """
        no_single_text("sentences", sentences)
        order = sorted(range(len(sentences)), key=lambda n: len(sentences[n]))
        order = [n for n in order if sentences[n]]
        found = [""] * len(sentences)
        for first in range(0, len(order), self.batch_size):
            chosen = order[first : first + self.batch_size]
            best = self.search([sentences[n] for n in chosen])
            for n, hypotheses in zip(chosen, best, strict=True):
                found[n] = self.vocabulary.text_of(hypotheses[0].ids)
        return found

    def search(self, sentences: Sequence[str]) -> list[list[Hypothesis]]:
        """The hypotheses of each of at most `batch_size` sentences, best first.

        Raises:
            ValueError: if `sentences` is a string, or if the model gives NaN.
        """
        no_single_text("sentences", sentences)
        encoded = self.vocabulary.encode_each(sentences)
        # A single sentence is computed alone, any other number as a whole batch.
        rows = 1 if len(encoded) == 1 else self.batch_size
        # Rows to fill the batch: a sentence of `<eos>` alone.
        filled = encoded + self.vocabulary.encode_each([""] * (rows - len(encoded)))
        source = source_batch(filled, self._multiple)
        memory, states = self._encode(keras.ops.convert_to_tensor(source))
        lengths = np.array([len(ids) - 1 for ids in filled])
        most = MOST_TIMES * lengths + MOST_MORE
        found = self._search(states, memory, lengths + LONGER, most)
        return found[: len(encoded)]

    def attention(self, sentence: str) -> "Attention":
        """The best translation of a sentence and the attention of each character."""
        ids = self.search([sentence])[0][0].ids
        source = source_batch(self.vocabulary.encode_each([sentence]), self._multiple)
        tokens = target_batch([np.array([self.vocabulary.eos, *ids])], self._multiple)
        memory, states = self._encode(keras.ops.convert_to_tensor(source))
        *_, scores = self._decode(keras.ops.convert_to_tensor(tokens), states, memory)
        scores = keras.ops.convert_to_numpy(keras.ops.cast(scores, "float32"))[0]
        # Without padding. The encoder reads the source reversed.
        scores = scores[: len(ids) + 1, : len(sentence) + 1][:, ::-1]
        end = self.vocabulary.words[self.vocabulary.eos]
        return Attention(
            source=[*sentence, end],
            target=[*self.vocabulary.text_of(ids), end],
            weights=scores,
        )


@dataclass(frozen=True)
class Attention:
    """Where the decoder looks.

    Attributes:
        source: the characters of the source and `<eos>`.
        target: the characters of the translation and `<eos>`.
        weights: float32 array of shape `(target, source)`; each row sums to 1.
    """

    source: list[str]
    target: list[str]
    weights: np.ndarray
