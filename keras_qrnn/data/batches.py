import keras
import numpy as np

from keras_qrnn._checks import positive_integer


class BPTTBatches(keras.utils.PyDataset):
    """Batches for truncated backpropagation through time.

    The stream's `N - 1` targets (each token but the first) are cut in
    `batch_size` contiguous pieces, one for each row, and these in batches of
    `seq_len` steps: row `b` of a batch goes on where row `b` of the batch
    before stopped, so that a stateful layer carries its state over. Each target
    is in one batch and nothing is trimmed: all batches have the same shape, and
    where a row has ended its weights are zero.

    Pass it to `fit` with `shuffle=False`.

    Args:
        ids: int array of shape `(tokens,)`.
        batch_size: rows of a batch.
        seq_len: steps of a batch.
        start: the first batch to give, for going on in mid-epoch.

    Raises:
        ValueError: if `batch_size` or `seq_len` is not a positive integer, or
            there are fewer targets than rows.
    """

    def __init__(
        self, ids: np.ndarray, batch_size: int, seq_len: int, start: int = 0
    ) -> None:
        super().__init__()
        positive_integer("batch_size", batch_size)
        positive_integer("seq_len", seq_len)
        self.num_targets = len(ids) - 1
        if self.num_targets < batch_size:
            raise ValueError(
                "Argument `ids` must have at least batch_size + 1 = "
                f"{batch_size + 1} tokens. Received: {len(ids)} tokens"
            )
        self.start = start
        self.seq_len = seq_len
        steps = -(-self.num_targets // batch_size)
        self._total = -(-steps // seq_len)
        self._inputs, self._targets, self._weights = (
            _rows(part, batch_size, steps, self._total * seq_len)
            for part in (
                np.asarray(ids[:-1], "int32"),
                np.asarray(ids[1:], "int32"),
                np.ones(self.num_targets, "float32"),
            )
        )

    def __len__(self) -> int:
        return self._total - self.start

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Inputs, targets (int32) and weights (float32), each `(batch, time)`."""
        if not 0 <= index < len(self):
            raise IndexError(f"There are {len(self)} batches. Received: {index}")
        first = (self.start + index) * self.seq_len
        at = slice(first, first + self.seq_len)
        return self._inputs[:, at], self._targets[:, at], self._weights[:, at]


def _rows(values: np.ndarray, rows: int, steps: int, length: int) -> np.ndarray:
    """`values` in `rows` rows of `steps`, each padded with zeros to `length`."""
    values = np.pad(values, (0, rows * steps - len(values))).reshape(rows, steps)
    return np.pad(values, ((0, 0), (0, length - steps)))
