"""Batches of sentence pairs of similar lengths."""

from collections.abc import Sequence

import keras
import numpy as np

from keras_qrnn._checks import positive_integer
from keras_qrnn.data.batches import LengthBatches, padded
from keras_qrnn.data.characters import CharacterVocabulary
from keras_qrnn.data.multi30k import Pairs

PAD, EOS = CharacterVocabulary.pad, CharacterVocabulary.eos


def without_long(pairs: Pairs, max_length: int) -> tuple[Pairs, int, int]:
    """The pairs to train on.

    Args:
        pairs: sentences and their translations.
        max_length: characters of the longest sentence to keep.

    Returns:
        The pairs that are kept; the number of pairs with a longer sentence; the number
        of pairs with an empty sentence. Those are left out.
    """
    kept: list[tuple[str, str]] = []
    long = empty = 0
    for pair in zip(pairs.source, pairs.target, strict=True):
        if not all(pair):
            empty += 1
        elif max(map(len, pair)) > max_length:
            long += 1
        else:
            kept.append(pair)
    return Pairs([s for s, _ in kept], [t for _, t in kept]), long, empty


def source_batch(sentences: Sequence[np.ndarray], multiple: int) -> np.ndarray:
    """Sentences as the encoder reads them: reversed, then padded at their ends.

    Args:
        sentences: int arrays, each ending with `<eos>`.
        multiple: the number of steps is a multiple of this.

    Returns:
        int32 array of shape `(sentences, time)`.
    """
    return target_batch([ids[::-1] for ids in sentences], multiple)


def target_batch(sentences: Sequence[np.ndarray], multiple: int) -> np.ndarray:
    """Sentences as they are, padded at their ends. The rest is as in `source_batch`."""
    time = _rounded(max(map(len, sentences)), multiple)
    return padded(sentences, time, PAD)


def _rounded(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


class PairBatches(LengthBatches):
    """Batches for teacher forcing. The pairs of a batch have similar lengths.

    `LengthBatches` says in which order they come. Lengths are rounded up to multiples
    of `multiple`: a large one makes few shapes, a small one little padding.

    A batch is `((source, inputs), targets, weights)`. All four have shape
    `(batch, time)`; the time of `source` is another one. `source` is reversed. `inputs`
    are the targets one step later, after a first `<eos>`.

    Args:
        source: int arrays, one for each sentence, each ending with `<eos>`.
        target: int arrays, the translations, each ending with `<eos>`.
        batch_size, seed: see `LengthBatches`.
        multiple: the number of steps of each array is a multiple of this.

    Raises:
        ValueError: if there are no pairs, or not as many sources as targets; if an
            argument is out of its range.
    """

    def __init__(
        self,
        source: Sequence[np.ndarray],
        target: Sequence[np.ndarray],
        batch_size: int,
        seed: int | None = None,
        multiple: int = 16,
    ) -> None:
        positive_integer("multiple", multiple)
        if not len(source) or len(source) != len(target):
            raise ValueError(
                "Arguments `source` and `target` must have equal numbers of sentences, "
                f"at least 1. Received: {len(source)} and {len(target)}"
            )
        self._source, self._target = source, target
        self._multiple = multiple
        lengths = [
            [_rounded(len(ids), multiple) for ids in side] for side in (source, target)
        ]
        super().__init__(np.array(lengths).T, batch_size, seed)
        shape = (batch_size, None)
        ids = keras.KerasTensor(shape, "int32")
        self.spec = ((ids, ids), ids, keras.KerasTensor(shape, "float32"))

    @property
    def num_targets(self) -> int:
        """Characters to predict in an epoch, each sentence's `<eos>` included."""
        return sum(map(len, self._target))

    def batch(
        self, index: int
    ) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray, np.ndarray]:
        chosen, is_new = self.rows(index)
        rows = chosen.tolist()
        source = [self._source[n] for n in rows]
        target = [self._target[n] for n in rows]
        targets = target_batch(target, self._multiple)
        inputs = np.roll(targets, 1, axis=1)
        inputs[:, 0] = EOS
        weights = (targets != PAD).astype("float32") * is_new[:, None]
        return (source_batch(source, self._multiple), inputs), targets, weights
