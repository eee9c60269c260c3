"""The README's Python examples run, and its figures are those of the result files."""

import csv
import re
from pathlib import Path

import keras
import numpy as np

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def test_examples(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 5
    for block in blocks:
        exec(block, names)
    assert names["model"].predict(np.array([[3, 5, 0]]), verbose=0).shape == (1, 1)
    assert names["decoded"].shape == (None, None, 16)
    pieces = keras.ops.concatenate([names["first"], names["second"]], axis=1)
    assert np.allclose(
        keras.ops.convert_to_numpy(pieces),
        keras.ops.convert_to_numpy(names["whole"]),
        atol=1e-5,
    )


def test_epochs_are_those_of_the_logs():
    names = {"TensorFlow": "tensorflow", "JAX": "jax", "PyTorch": "torch"}
    lines = re.findall(r"^\| (\w+) [\d.]+ \| `\w+` \| (.*) \|$", README, re.MULTILINE)
    assert [name for name, _ in lines] == list(names)
    for name, figures in lines:
        path = ROOT / "results" / "one_epoch" / f"{names[name]}.csv"
        with path.open(encoding="utf-8") as file:
            (row,) = csv.DictReader(file)
        perplexity, seconds = float(row["val_perplexity"]), float(row["seconds"])
        assert figures == f"{perplexity:.1f} | {seconds:.0f} s"


def test_what_the_search_found():
    """The figures beside its pictures are those of its trials."""
    with (ROOT / "results" / "ptb_search" / "trials.csv").open() as file:
        names = ("val_perplexity", "window", "zoneout", "seconds")
        rows = [
            {name: float(row[name]) for name in names} for row in csv.DictReader(file)
        ]
    rows.sort(key=lambda row: row["val_perplexity"])
    found = [row["val_perplexity"] for row in rows]
    assert len(rows) == 20 and f"the best reaches {found[0]:.1f}" in README
    assert sum(row["zoneout"] < 1e-3 for row in rows[:10]) == 9

    def range_of(**wanted):
        of = [
            row["val_perplexity"]
            for row in rows
            if all(abs(row[name] - value) < 0.02 for name, value in wanted.items())
        ]
        return f"{min(of):.0f} to {max(of):.0f}" if len(of) > 2 else f"{min(of):.0f}"

    text = " ".join(README.split())
    minutes = sum(row["seconds"] for row in rows) / 60
    assert f"The trials, one training each, took {minutes:.0f} minutes" in text
    assert f"with 0.4 the perplexity is {range_of(zoneout=0.4)}" in text
    by_window = [range_of(window=n, zoneout=0) for n in (1, 2, 3, 4)]
    expected = "a window of 1 comes to {}, of 2 to {} and 295, of 3 to {}, of 4 to {}."
    assert expected.format(*by_window) in text


def test_the_summary_of_the_speed_tables():
    """What the README says in short is what the result files say."""
    assert "oneDNN's LSTM is up to a third faster" in README
    for backend in ("jax", "tensorflow", "torch"):
        path = ROOT / "benchmarks" / "results" / backend / "layer.csv"
        cells = {}
        with path.open(encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row["dtype"] != "float32":
                    continue
                cell = row["mode"], int(row["batch"]) * int(row["time"]), row["batch"]
                cells.setdefault(cell, {})[row["name"]] = float(row["median"])
        for (_, rows, _), times in cells.items():
            fastest = min(s for name, s in times.items() if "LSTM" in name)
            ahead = fastest / times["QRNN"]
            if backend != "torch" or rows > 4096:
                assert ahead >= 1
            else:
                assert ahead >= (0.95 if rows > 1024 else 0.73)
