"""The notebooks in docs/notebooks run, and the outputs in them are theirs."""

import json
import os
import re
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import pytest

NOTEBOOKS = {
    path.stem: json.loads(path.read_text("utf-8"))
    for path in sorted((Path(__file__).parents[2] / "docs/notebooks").glob("*.ipynb"))
}
# What the tests put in place of the values of the cell "parameters".
SMALL = {
    "character_model": {"epochs": 1, "train_size": 16, "num_characters": 20},
    "forecasting": {"epochs": {"QRNN": 1, "LSTM": 1}, "train_size": 32},
    "own_recurrence": {"epochs": 1, "train_size": 100},
    "sequence_to_sequence": {"epochs": 1, "train_size": 100},
    "text_classification": {"epochs": 1, "train_size": 120},
}

BACKEND = keras.config.backend()
# PyTorch compiles nothing and runs all. `make docs` runs all on JAX, whole.
CHOSEN = {"torch": NOTEBOOKS, "tensorflow": ["forecasting"]}.get(BACKEND, [])
if os.environ.get("KERAS_QRNN_NOTEBOOKS") == "all":
    CHOSEN = NOTEBOOKS


def code_cells(notebook):
    """Source, tags and printed text of each code cell."""
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            texts = [t for out in cell["outputs"] for t in out.get("text", ())]
            source, tags = "".join(cell["source"]), cell["metadata"].get("tags", [])
            yield source, tags, "".join(texts)


@pytest.mark.skipif(BACKEND == "numpy", reason="the NumPy backend has no gradients")
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_runs(name, tmp_path, monkeypatch, capsys):
    """It runs, and prints what stands in the file, but for numbers."""
    if name not in CHOSEN:
        pytest.skip("takes minutes of compilation: KERAS_QRNN_NOTEBOOKS=all runs it")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plt, "show", plt.close)
    names = {}
    for number, (source, tags, shown) in enumerate(code_cells(NOTEBOOKS[name]), 1):
        exec(compile(source, f"<{name}, code cell {number}>", "exec"), names)
        if "parameters" in tags:
            assert SMALL[name].keys() <= names.keys()
            names |= SMALL[name]
        printed = capsys.readouterr().out
        if "varies" not in tags:
            assert without_numbers(printed) == without_numbers(shown)


def without_numbers(text):
    return re.sub(r"\d[\d.,]*", "0", text)


@pytest.mark.one_backend
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_was_executed(name):
    """It was run from its beginning to its end, and holds nothing of a machine."""
    notebook = NOTEBOOKS[name]
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    counts = [cell["execution_count"] for cell in cells]
    assert counts == list(range(1, len(cells) + 1))
    kinds = {out.get("name", out["output_type"]) for c in cells for out in c["outputs"]}
    assert kinds == {"stdout", "display_data"}  # no errors, no warnings
    assert set(notebook["metadata"]) <= {"kernelspec", "language_info"}
    assert all(set(cell["metadata"]) <= {"tags"} for cell in notebook["cells"])
    data = [out.get("data", {}) for cell in cells for out in cell["outputs"]]
    assert any("image/png" in each for each in data)
