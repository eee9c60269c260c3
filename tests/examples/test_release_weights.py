"""Weights for a release: their size, their perplexity, and the card's own example."""

import json
import re
import zipfile

import h5py
import keras
import numpy as np
import pytest

from keras_qrnn.data import load_corpus
from keras_qrnn.models import LanguageModel
from keras_qrnn.training import evaluate_perplexity, load_trained
from tests.examples.programs import ROOT, arguments, script

pytestmark = pytest.mark.skipif(
    keras.config.backend() == "numpy", reason="the NumPy backend does not train"
)
once = pytest.mark.one_backend("torch")
release = script("release_weights")


@pytest.fixture(scope="module")
def trained(small_ptb, tmp_path_factory):
    """A run of one epoch, in mixed precision, and its data."""
    path = tmp_path_factory.mktemp("runs") / "model"
    sizes = {"units": 8, "emb_dim": 6, "seq_len": 40, "batch_size": 8, "epochs": 1}
    sizes |= {"dtype_policy": "mixed_bfloat16", "learning_rate": 0.2}
    data = arguments(data_dir=small_ptb, save_path=path, **sizes)
    assert script("train_lm").main([*data, "--verbose", "0"]) == 0
    return path


@once
def test_a_release(trained, small_ptb, tmp_path, capsys, monkeypatch):
    path = tmp_path / "release" / "qrnn"
    given = arguments(load_path=trained, save_path=path, data_dir=small_ptb)
    assert release.main(given) == 0
    assert {file.name for file in path.iterdir()} == {
        "README.md", "model.keras", "vocabulary.json",
    }  # fmt: skip
    assert [file.name for file in path.parent.iterdir()] == ["qrnn"]
    model, vocabulary = load_trained(path, "load_path")
    record = json.loads((trained / "run.json").read_text())
    before, _ = load_trained(trained, "load_path")
    assert before.compute_dtype == "bfloat16" and model.compute_dtype == "float32"
    # The card has the perplexities of these weights, and its example runs.
    card = (path / "README.md").read_text()
    for split in ("valid", "test"):
        ids = vocabulary.encode(getattr(load_corpus(data_dir=small_ptb), split))
        perplexity = evaluate_perplexity(model, ids)
        row = f"| {split} | {len(ids) - 1} | {perplexity:.2f} | {record[split]:.2f} |"
        assert row in card
    for name in ("command", "hardware", "versions", "date"):
        assert record[name] in card
    assert f"{record['weights']:,} weights" in card and "Apache-2.0" in card
    assert "| `units` | units of each layer | 8 |" in card and "`epochs`" in card
    (example,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(path)
    capsys.readouterr()
    exec(compile(example, "<card>", "exec"), {})
    assert len(capsys.readouterr().out.split()) > 5


def test_weights_in_half_precision_give_a_float32_model(tmp_path):
    model = LanguageModel(9, 4, 3, batch_size=2, tied=True, dtype="mixed_bfloat16")
    model.build()
    release.save_in_half_precision(model, tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        archive.extract("model.weights.h5", tmp_path)
    found = []

    def collect(_, each):
        if isinstance(each, h5py.Dataset) and each.dtype.kind == "f":
            found.append(each)

    with h5py.File(tmp_path / "model.weights.h5") as file:
        file.visititems(collect)
        assert {each.dtype for each in found} == {np.dtype("float16")}
        assert len(found) == len(model.weights)
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.compute_dtype == "float32"
    for weight, expected in zip(loaded.weights, model.weights, strict=True):
        expected = keras.ops.convert_to_numpy(expected).astype("float16")
        assert np.array_equal(keras.ops.convert_to_numpy(weight), expected)


@once
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "`load_path` must be given"),
        ({"load_path": "results/qrnn"}, "which holds no model.keras"),
        ({"load_path": "TRAINED", "save_path": "TRAINED"}, "which holds files"),
        (
            {"load_path": "TRAINED", "dataset": "sample"},
            "must give the corpus",
        ),
        ({"load_path": "COPY"}, "holds no run.json"),
        ({"load_path": "DAMAGED"}, "run.json is not the record of a run"),
        ({"load_path": "PART"}, "run.json is not the record .* no command, date"),
    ],
)
def test_bad_options(trained, small_ptb, tmp_path, capsys, options, message):
    for name in ("COPY", "DAMAGED", "PART"):
        (tmp_path / name).mkdir()
        for file in ("model.keras", "vocabulary.json"):
            (tmp_path / name / file).write_bytes((trained / file).read_bytes())
    (tmp_path / "DAMAGED" / "run.json").write_text("[]")
    (tmp_path / "PART" / "run.json").write_text('{"options": {}}')
    names = ("COPY", "DAMAGED", "PART")
    places = {"TRAINED": trained} | {name: tmp_path / name for name in names}
    base = {"save_path": tmp_path / "new"}
    if "dataset" not in options:
        base["data_dir"] = small_ptb
    given = base | {name: places.get(v, v) for name, v in options.items()}
    assert release.main(arguments(**given)) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1
    assert not (tmp_path / "new").exists()


@once
def test_the_card_of_an_earlier_run():
    """Its options have older names."""
    record = release.read_record(ROOT / "results" / "qrnn")
    card = release.model_card(record, {"valid": (73759, 79.4)}, "Penn Treebank")
    assert "# QRNN language model: 2 layers of 640, zoneout none" in card
    assert "17,729,040 weights" in card and "| valid | 73759 | 79.40 | 79.36 |" in card
    assert "| `emb_dim` | size of the embedding | 640 |" in card
    assert "`zoneout`" in card and "`epochs`" not in card
    assert "section 3.2" not in card  # the embedding is smaller
    record["options"]["emb_dim"] = 650
    assert "the paper's section 3.2" in release.model_card(record, {}, "x")
    record["options"]["cell"] = "lstm"
    card = release.model_card(record, {}, "x")
    assert "# LSTM language model: 2 layers of 640\n" in card
    assert "QRNN" not in card and "section 3.2" not in card and "tags: [lstm," in card


@once
def test_weights_too_large_for_half_precision(trained, tmp_path):
    model, _ = load_trained(trained, "load_path")
    model.logits_bias.assign(model.logits_bias + 1e5)
    with pytest.raises(ValueError, match=r"must be finite in half precision.*bias"):
        release.save_in_half_precision(model, tmp_path / "model.keras")
