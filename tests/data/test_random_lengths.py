"""Batches of random lengths: their mean, their spread, their order."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_qrnn.data import BPTTBatches
from keras_qrnn.data.batches import random_lengths
from keras_qrnn.training.callbacks import BatchesOfTheEpoch

IDS = np.arange(2000, dtype="int32") % 7


@given(st.integers(1, 20_000), st.integers(1, 200), st.integers(0, 9))
def test_lengths(steps, seq_len, epoch):
    lengths = random_lengths(steps, seq_len, [3, epoch])
    assert 0 <= lengths.sum() - steps < max(lengths.min(), 1)
    assert lengths.min() >= 1 and len(set(lengths.tolist())) <= 4
    again = random_lengths(steps, seq_len, [3, epoch])
    assert np.array_equal(lengths, again)
    other = random_lengths(steps, seq_len, [3, epoch + 1])
    assert np.array_equal(np.sort(lengths), np.sort(other))


def test_lengths_of_penn_treebank():
    """5 % of the lengths are half; the others have mean 70 and deviation 5."""
    lengths = random_lengths(46_480, 70, 0)
    assert set(lengths.tolist()) == {35, 61, 70, 79}
    assert np.mean(lengths == 35) == pytest.approx(0.05, abs=0.005)
    others = lengths[lengths != 35]
    assert others.mean() == pytest.approx(70, abs=0.1)
    assert others.std() == pytest.approx(5, abs=0.3)
    assert not np.array_equal(lengths, random_lengths(46_480, 70, 1))


@pytest.mark.parametrize("start", [0, 5])
def test_each_target_is_in_one_batch_whatever_the_epoch(start):
    batches = BPTTBatches(IDS, 3, 20, lengths_seed=1)
    rest = BPTTBatches(IDS, 3, 20, start, lengths_seed=1)
    seen = []
    for epoch in (4, 0):
        batches.epoch = rest.epoch = epoch
        parts = [batches[n] for n in range(len(batches))]
        seen.append([x.shape for x, _, _ in parts])
        x, y, weights = (
            np.concatenate(part, axis=1) for part in zip(*parts, strict=True)
        )
        order = weights.astype(bool)
        assert np.array_equal(x[order], IDS[:-1])
        assert np.array_equal(y[order], IDS[1:])
        assert len(rest) == len(batches) - start
        for n in range(len(rest)):
            for found, expected in zip(rest[n], parts[start + n], strict=True):
                assert np.array_equal(found, expected)
    assert len(seen[0]) == len(seen[1]) and seen[0] != seen[1]


@pytest.mark.skipif(
    keras.config.backend() == "numpy", reason="the NumPy backend does not train"
)
def test_fit_takes_the_lengths_of_each_epoch():
    taken = []

    class Recorded(BPTTBatches):
        def __getitem__(self, index):
            x, y, weights = super().__getitem__(index)
            taken.append((self.epoch, index, x.shape[1]))
            return x, y, weights

    keras.utils.set_random_seed(0)
    batches = Recorded(IDS[:700], 2, 20, lengths_seed=1)
    expected = []
    for epoch in (2, 3):
        batches.epoch = epoch
        lengths = [batches[n][0].shape[1] for n in range(len(batches))]
        expected.append([(epoch, n, length) for n, length in enumerate(lengths)])
    assert expected[0] != expected[1]
    batches.epoch = 0
    taken.clear()
    model = keras.Sequential([keras.layers.Embedding(7, 7)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(
        batches.for_fit(), initial_epoch=2, epochs=4, shuffle=False, verbose=0,
        callbacks=[BatchesOfTheEpoch(batches)],
    )  # fmt: skip
    trained_on = [each for each in taken if each[0] >= 2]
    assert trained_on == expected[0] + expected[1]
