"""examples/long_memory.py: its tasks, a short run, its options."""

import json

import numpy as np
import pytest
from keras import ops

from tests.examples import bad_options

long_memory = bad_options.load("long_memory.py")


@pytest.mark.one_backend
def test_adding():
    x, y = long_memory.adding(500, 7, np.random.default_rng(0))
    assert x.shape == (500, 7, 2) and y.shape == (500, 1)
    marks = x[:, :, 1]
    assert (marks[:, :3].sum(1) == 1).all() and (marks[:, 3:].sum(1) == 1).all()
    assert (marks.sum(0) > 0).all()  # each step is marked in some sequence
    np.testing.assert_allclose(y[:, 0], (x[:, :, 0] * marks).sum(1), rtol=1e-6)
    # To answer 1 has the error that is printed as chance.
    assert abs(np.mean((y - 1) ** 2) - long_memory.TASKS["adding"].chance) < 0.02


@pytest.mark.one_backend
def test_copy_memory():
    x, y = long_memory.copy_memory(50, 6, np.random.default_rng(0))
    assert x.shape == (50, 26, 10) and y.shape == (50, 26)
    assert (x.sum(2) == 1).all()
    tokens = x.argmax(2)
    assert set(np.unique(tokens[:, :10])) == set(range(1, 9))
    assert (tokens[:, 16] == 9).all() and not y[:, :16].any()
    assert not np.delete(tokens[:, 10:], 6, axis=1).any()  # blanks
    np.testing.assert_array_equal(y[:, -10:], tokens[:, :10])
    measure = long_memory.TASKS["copy"].measure
    assert measure(np.eye(10)[y], y) == 1 and measure(np.eye(10)[y * 0], y) == 0


@pytest.mark.one_backend
def test_batches():
    options = long_memory.Options(length=5, batch_size=3, steps=2)
    one, other = long_memory.Batches(options), long_memory.Batches(options)
    first = [one[n][0] for n in range(len(one))]
    np.testing.assert_array_equal(first[0], other[0][0])
    one.on_epoch_end()
    batches = [*first, *(one[n][0] for n in range(len(one)))]
    assert len({batch.tobytes() for batch in batches}) == 4


@pytest.mark.one_backend("torch")
@pytest.mark.parametrize("task", ["adding", "copy"])
def test_a_short_run(task, tmp_path, capsys, monkeypatch):
    class Recorded(long_memory.Batches):
        def __init__(self, options):
            super().__init__(options)
            taken.append([])

        def __getitem__(self, index):
            taken[-1].append((self.epoch, index))
            return super().__getitem__(index)

    taken = []
    monkeypatch.setattr(long_memory, "Batches", Recorded)
    argv = [
        "--task", task, "--length", "5", "--units", "4", "--layers", "2", "--epochs",
        "2", "--steps", "4", "--batch_size", "4", "--models", "qrnn,chrono,lstm",
        "--pooling", "ifo", "--save_path", str(tmp_path / "run"),
    ]  # fmt: skip
    assert long_memory.main(argv) == 0
    one, other, third = taken
    assert one == other == third == sorted(one)  # each model has the same batches
    record = json.loads((tmp_path / "run" / "results.json").read_text("utf-8"))
    assert (tmp_path / "run" / "loss.png").stat().st_size > 1000
    chance = {"adding": 1 / 6, "copy": 1 / 8}[task]
    assert record["chance"] == chance and record["options"]["length"] == 5
    printed = capsys.readouterr().out
    assert "Epoch 2/2" in printed and f"chance             {chance:.4f}" in printed
    for name, run in record["runs"].items():
        assert len(run["loss"]) == 2 and run["weights"] > 0
        assert f"{long_memory.MODELS[name]:<18} {run['result']:.4f}" in printed
    # Hours of work are not written over.
    assert long_memory.main(argv) == 2
    message = "holds results.json, loss.png already. Use another --save_path"
    assert message in capsys.readouterr().err and len(taken) == 3
    (tmp_path / "run" / "results.json").unlink()
    assert long_memory.main(argv) == 2
    assert "holds loss.png already" in capsys.readouterr().err


@pytest.mark.one_backend
def test_biases_of_the_models():
    options = long_memory.Options(length=9, units=50, layers=2)
    zero, chrono = (
        [ops.convert_to_numpy(layer.bias) for layer in model.layers[:2]]
        for model in (long_memory.build(n, options, (9, 2)) for n in ("qrnn", "chrono"))
    )
    assert not zero[0].any() and not zero[1].any()
    first, second = (bias[50:100] for bias in chrono)
    assert 0 <= first.min() < first.max() <= np.log(8) and (first != second).any()
