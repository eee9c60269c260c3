"""Batches of an epoch: for any data, and for backpropagation through time in a text."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_qrnn._checks import integer, positive_integer
from keras_qrnn._processes import part_of_this_process

if TYPE_CHECKING:
    import tensorflow as tf

# For batches of random lengths.
SHORT_PART = 0.05  # the share of batches with half of the steps
DEVIATION = 5.0  # the standard deviation, in steps, of the other batches' lengths


class EpochBatches(keras.utils.PyDataset):
    """The batches of an epoch, all of them or those from `start` on.

    A subclass gives `total`, `batch` and, if its batches differ in shape, `spec`. It
    may give other batches in each `epoch`: `draw` draws them from a seed and the epoch.
    Their number is the same in all epochs. So a run that is killed within an epoch
    resumes exactly.

    Pass `for_fit()` to `fit` with `shuffle=False`.

    Attributes:
        start: index of the first batch to give. A run that resumes within an epoch
            sets it.
        epoch: index of the epoch, from 0. Set it before you take the epoch's first
            batch.
        total: number of batches of an epoch.
        spec: a batch of `keras.KerasTensor`, whose axes that differ from batch to
            batch are None. None if all batches have the same shapes.
    """

    start = 0
    total: int
    spec: Any = None
    _epoch = 0

    @property
    def epoch(self) -> int:
        return self._epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch = epoch
        self.draw()

    def draw(self) -> None:
        """Draws what the present epoch decides."""

    def batch(self, index: int) -> tuple:
        """Batch `index` of the present epoch, counted from its first one."""
        raise NotImplementedError

    def __len__(self) -> int:
        return self.total - self.start

    def __getitem__(self, index: int) -> tuple:
        if not 0 <= index < len(self):
            raise IndexError(f"There are {len(self)} batches. Received: {index}")
        return self.batch(self.start + index)

    def for_fit(self) -> "keras.utils.PyDataset | tf.data.Dataset":
        """These batches in a form that `fit` takes, even where their shapes differ.

        Where several processes train together, they are this process's rows.

        On TensorFlow, Keras reads two batches and expects their shapes from all others.
        There, batches with a `spec` become a `tf.data.Dataset` whose axes have no fixed
        size. Elsewhere the result is this object.
        """
        part, parts = part_of_this_process()
        if parts > 1:
            return _PartOfRows(self, part, parts)
        if self.spec is None or keras.config.backend() != "tensorflow":
            return self
        import tensorflow as tf

        dataset = tf.data.Dataset.from_generator(
            lambda: (self[n] for n in range(len(self))),
            output_signature=keras.tree.map_structure(
                lambda each: tf.TensorSpec(each.shape, each.dtype), self.spec
            ),
        )
        return dataset.apply(tf.data.experimental.assert_cardinality(len(self)))


class _PartOfRows(keras.utils.PyDataset):
    """One of equal parts of the rows of each batch."""

    def __init__(self, batches: EpochBatches, part: int, parts: int) -> None:
        super().__init__()
        self._batches, self._part, self._parts = batches, part, parts

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> tuple:
        return part_of_rows(self._batches[index], self._part, self._parts)


def part_of_rows(batch: tuple, part: int, parts: int) -> tuple:
    """One of equal parts of the rows of a batch.

    Args:
        batch: arrays that all have the same number of rows.
        part: which part, from 0.
        parts: number of parts.

    Raises:
        ValueError: if the rows cannot be divided in so many equal parts.
    """

    def rows(array: np.ndarray) -> np.ndarray:
        size, rest = divmod(len(array), parts)
        if rest:
            raise ValueError(
                f"The rows of a batch must be a multiple of {parts}, the number of "
                f"processes. Received: {len(array)} rows"
            )
        return array[part * size : (part + 1) * size]

    return keras.tree.map_structure(rows, batch)


class BPTTBatches(EpochBatches):
    """Batches for truncated backpropagation through time.

    A stream of `N` tokens has `N - 1` targets: each token but the first. The targets
    are cut into `batch_size` contiguous parts, one for each row. Each row is cut into
    batches of `seq_len` steps. Row `b` of a batch continues row `b` of the batch
    before, so a stateful layer carries its state over.

    Each target is in exactly one batch. No target is trimmed: rows that end early are
    padded, and the weights of the padded steps are zero. All batches have the same
    shape.

    With a `lengths_seed` the batches have random numbers of steps. Gradients are then
    cut at other places in each epoch. The order of the lengths is drawn anew for each
    `epoch`: see `random_lengths`.

    Pass `for_fit()` to `fit` with `shuffle=False`.

    Args:
        ids: int array of shape `(tokens,)`.
        batch_size: rows of a batch.
        seq_len: steps of a batch.
        start: index of the first batch to give. A run that resumes within an epoch
            sets it.
        lengths_seed: seed of the random lengths, an integer of at least 0. None gives
            batches of `seq_len` steps.

    Attributes:
        epoch: index of the epoch, from 0, which decides the order of the lengths. Set
            it before you take the epoch's first batch.

    Raises:
        ValueError: if `batch_size` or `seq_len` is not a positive integer; if `ids` is
            no int array of one axis, or there are fewer targets than rows.
    """

    def __init__(
        self,
        ids: np.ndarray,
        batch_size: int,
        seq_len: int,
        start: int = 0,
        lengths_seed: int | None = None,
    ) -> None:
        super().__init__()
        positive_integer("batch_size", batch_size)
        positive_integer("seq_len", seq_len)
        ids = np.asarray(ids)
        if ids.ndim != 1 or (len(ids) and ids.dtype.kind not in "iu"):
            raise ValueError(
                "Argument `ids` must be an int array of shape (tokens,). "
                f"Received: ids of {ids.shape}, {ids.dtype}"
            )
        self.num_targets = len(ids) - 1
        if self.num_targets < batch_size:
            raise ValueError(
                "Argument `ids` must have at least batch_size + 1 = "
                f"{batch_size + 1} tokens. Received: {len(ids)} tokens"
            )
        self.start = start
        self.seq_len = seq_len
        steps = -(-self.num_targets // batch_size)
        self._steps = steps
        self._lengths_seed = lengths_seed
        self.epoch = 0
        self.total = len(self._lengths)
        if lengths_seed is not None:
            self.spec = tuple(
                keras.KerasTensor((batch_size, None), dtype)
                for dtype in ("int32", "int32", "float32")
            )
        length = int(self._lengths.sum())
        self._inputs, self._targets, self._weights = (
            _rows(part, batch_size, steps, length)
            for part in (
                np.asarray(ids[:-1], "int32"),
                np.asarray(ids[1:], "int32"),
                np.ones(self.num_targets, "float32"),
            )
        )

    def draw(self) -> None:
        if self._lengths_seed is None:
            lengths = np.full(-(-self._steps // self.seq_len), self.seq_len)
        else:
            seed = [self._lengths_seed, self.epoch]
            lengths = random_lengths(self._steps, self.seq_len, seed)
        self._lengths = lengths
        self._ends = np.cumsum(lengths)

    def batch(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Inputs, targets (int32) and weights (float32), each `(batch, time)`."""
        at = slice(self._ends[index] - self._lengths[index], self._ends[index])
        return self._inputs[:, at], self._targets[:, at], self._weights[:, at]


def stream_batches(ids: np.ndarray, steps: int) -> BPTTBatches:
    """A stream as one row, in batches of `steps` steps.

    Args:
        ids: int array of shape `(tokens,)`.
        steps: steps of a batch. A shorter stream is one batch.
    """
    steps = positive_integer("steps", steps)
    return BPTTBatches(ids, 1, max(1, min(steps, len(ids) - 1)))


class LengthBatches(EpochBatches):
    """Batches of sequences of similar lengths, so that little is padded.

    The sequences are sorted by their lengths. Sequences of equal lengths are in random
    order. The sorted sequences are cut in batches, and the batches are in random order.
    Each epoch draws both orders anew. All epochs have the same number of batches.

    All batches have `batch_size` rows. The last rows of the longest batch repeat
    earlier sequences; give them weights of zero.

    A subclass gives `batch`, which takes the batch's sequences from `rows`.

    Args:
        lengths: int array of shape `(sequences,)`, or `(sequences, sides)` for
            sequences that come in pairs. Round them up to few values: then many
            sequences have one length and come in random order, and there are few
            shapes. JAX compiles each shape anew, which takes seconds.
        batch_size: rows of a batch.
        seed: of the random orders. None: the order is that of the lengths.

    Raises:
        ValueError: if there are no sequences, or an argument is out of its range.
    """

    def __init__(
        self, lengths: np.ndarray, batch_size: int, seed: int | None = None
    ) -> None:
        super().__init__()
        self.batch_size = positive_integer("batch_size", batch_size)
        self.seed = seed if seed is None else integer("seed", seed, 0)
        if not len(lengths):
            raise ValueError("There must be at least one sequence. Received: none")
        self._lengths = np.reshape(lengths, (len(lengths), -1))
        self.total = -(-len(lengths) // batch_size)
        self.epoch = 0

    def draw(self) -> None:
        count = len(self._lengths)
        ties, batches = np.arange(count), np.arange(self.total)
        if self.seed is not None:
            rng = np.random.default_rng([self.seed, self.epoch])
            ties, batches = rng.permutation(count), rng.permutation(self.total)
        self._order = np.lexsort((ties, *self._lengths.T))
        self._batches = batches

    def rows(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The sequences of batch `index` of the present epoch.

        Returns:
            Their indices and their weights, 1 or 0, of shape `(batch_size,)`.
        """
        first = self._batches[index] * self.batch_size
        chosen = self._order[first : first + self.batch_size]
        weights = np.zeros(self.batch_size, "float32")
        weights[: len(chosen)] = 1
        return np.resize(chosen, self.batch_size), weights


def padded(rows: Sequence[np.ndarray], length: int, padding: int = 0) -> np.ndarray:
    """The sequences as an int32 array of shape `(rows, length)`, padded at the end."""
    array = np.full((len(rows), length), padding, "int32")
    for n, row in enumerate(rows):
        array[n, : len(row)] = row
    return array


def round_lengths(lengths: np.ndarray, parts: int = 8) -> np.ndarray:
    """Lengths, each rounded up to one of `parts` lengths between two powers of two.

    So few lengths are left, and at most `1 / parts` of a sequence is padding.
    """
    lengths = np.asarray(lengths)
    step = 2 ** np.floor(np.log2(np.maximum(lengths, 1)))
    step = np.maximum(step // parts, 1).astype(int)
    return -(-lengths // step) * step


def random_lengths(steps: int, seq_len: int, seed: int | list[int]) -> np.ndarray:
    """The steps of each batch of an epoch, in random order (arXiv 1708.02182, 4.1).

    The paper draws each length from a normal distribution with a deviation of 5 steps.
    Its mean is `seq_len` with probability 0.95, and half of `seq_len` otherwise.

    JAX and TensorFlow compile each length anew, which takes seconds. So this function
    uses four lengths only: `seq_len`, 9 steps more, 9 steps less, and half. The first
    three come in parts of 2/3, 1/6 and 1/6. They are the three points of Gauss-Hermite
    quadrature: they have the mean of the normal distribution and, up to rounding, its
    deviation. Padding to one length would compile once, but would compute padded steps
    in each batch.

    `steps` and `seq_len` alone decide how many batches of each length there are.
    `seed` decides the order. All epochs have the same number of batches.

    The paper scales the learning rate by the length, because its loss is a mean over
    the steps. `LanguageModel`'s loss is a sum over the steps, so its gradient scales
    with the length already.

    Args:
        steps: steps of each row in an epoch.
        seq_len: steps of most batches.
        seed: seed of the order, for `numpy.random.default_rng`.

    Returns:
        An int array of shape `(batches,)`. Its sum is at least `steps`, and exceeds
        `steps` by less than the shortest length.
    """
    half = -(-seq_len // 2)
    spread = min(round(math.sqrt(3) * DEVIATION), seq_len - half)
    mean = SHORT_PART * half + (1 - SHORT_PART) * seq_len
    count = math.ceil(steps / mean)
    halves = round(SHORT_PART * count)
    pairs = round((1 - SHORT_PART) * count / 6)  # one longer, one shorter
    whole = math.ceil((steps - halves * half) / seq_len) - 2 * pairs
    excess = halves * half + (2 * pairs + whole) * seq_len - steps
    if excess >= seq_len - half and whole:
        whole, halves = whole - 1, halves + 1
    lengths = np.repeat(
        [half, seq_len - spread, seq_len + spread, seq_len],
        [halves, pairs, pairs, whole],
    )
    return np.random.default_rng(seed).permutation(lengths)


def _rows(values: np.ndarray, rows: int, steps: int, length: int) -> np.ndarray:
    """`values` in `rows` rows of `steps`, each padded with zeros to `length`."""
    values = np.pad(values, (0, rows * steps - len(values))).reshape(rows, steps)
    return np.pad(values, ((0, 0), (0, length - steps)))
