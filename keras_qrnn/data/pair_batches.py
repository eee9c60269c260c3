"""Batches of sentence pairs of similar lengths."""

from collections.abc import Sequence

import keras
import numpy as np

from keras_qrnn._checks import positive_integer
from keras_qrnn.data.batches import LengthBatches
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
    return padded([ids[::-1] for ids in sentences], multiple)


def padded(rows: Sequence[np.ndarray], multiple: int) -> np.ndarray:
    """The rows in one int32 array, filled with `<pad>` to a multiple of `multiple`."""
    time = _rounded(max(map(len, rows)), multiple)
    array = np.full((len(rows), time), PAD, "int32")
    for n, ids in enumerate(rows):
        array[n, : len(ids)] = ids
    return array


def _rounded(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


class PairBatches(LengthBatches):
    """Batches for teacher forcing. The pairs of a batch have similar lengths.

    The pairs are sorted by their lengths, each rounded up to a multiple of `multiple`.
    Pairs of equal rounded lengths are in random order. The sorted pairs are cut in
    batches, and the batches are in random order. Each epoch draws both orders anew. All
    epochs have the same number of batches.

    JAX compiles each shape of a batch anew, which takes seconds. A large `multiple`
    makes few shapes, a small one little padding.

    All batches have `batch_size` rows. The last rows of the last batch repeat earlier
    pairs with weights of zero.

    A batch is `((source, inputs), targets, weights)`. All four have shape
    `(batch, time)`; the time of `source` is another one. `source` is reversed. `inputs`
    are the targets one step later, after a first `<eos>`.

    Args:
        source: int arrays, one for each sentence, each ending with `<eos>`.
        target: likewise, the translations.
        batch_size: rows of a batch.
        seed: of the random orders. None: the order is that of the lengths.
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
        targets = padded(target, self._multiple)
        inputs = np.roll(targets, 1, axis=1)
        inputs[:, 0] = EOS
        weights = (targets != PAD).astype("float32") * is_new[:, None]
        return (source_batch(source, self._multiple), inputs), targets, weights
