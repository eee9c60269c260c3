"""The README's Python examples run, and its figures are those of the result files."""

import csv
import re
from pathlib import Path

import keras
import numpy as np

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def test_examples():
    names = {}
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, names)
    assert names["model"].predict(np.array([[3, 5, 0]]), verbose=0).shape == (1, 1)
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
