"""train_translation.py and translate.py, run as a user runs them."""

import importlib.util
import io
import json
import sys

import keras
import numpy as np
import pytest

from keras_qrnn.data import translation_sample
from keras_qrnn.training.checkpoint import load_checkpoint
from keras_qrnn.training.translation import (
    PRESETS,
    Translation,
    TranslationOptions,
    accuracy,
    bleu,
    count_weights,
    load_translation,
)
from tests.examples.programs import arguments, script

pytestmark = pytest.mark.skipif(
    keras.config.backend() == "numpy", reason="the NumPy backend does not train"
)
needs_sacrebleu = pytest.mark.skipif(
    importlib.util.find_spec("sacrebleu") is None, reason="needs sacrebleu"
)
TINY = {"units": 4, "emb_dim": 3, "layers": 1, "first_window": 3, "batch_size": 8}
TINY |= {"save_every": 3, "length_step": 8, "max_length": 8, "epochs": 2}


train, translate = script("train_translation"), script("translate")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """30 pairs to train on, two too long ones, one without a translation."""
    directory = tmp_path_factory.mktemp("text")
    words = [a + b for a in "abcdef" for b in "uvwxy"]
    parts = {"train": words, "val": words[:4], "test_a": words[4:7]}
    splits = {n: ([*part], [w[::-1] + w for w in part]) for n, part in parts.items()}
    splits["train"][0].extend(["x" * 9, "y", "z"])
    splits["train"][1].extend(["x", "y" * 9, ""])
    for split, sides in splits.items():
        for language, lines in zip(("de", "en"), sides, strict=True):
            (directory / f"{split}.{language}").write_text("\n".join(lines) + "\n")
    return directory


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A run, its history, and whether sacrebleu has evaluated it."""
    path = tmp_path_factory.mktemp("runs") / "run"
    text = train.TextOptions(data_dir=str(data)).load()
    experiment = Translation(text, TranslationOptions(**TINY))
    experiment_history = train.shared.train_experiment(experiment, path, verbose=0)
    return path, experiment_history, experiment


def test_defaults_are_those_of_the_paper():
    parsed = train.parser().parse_args([])
    options = train.options_from(parsed)
    expected = {
        "cell": "qrnn", "epochs": 10, "batch_size": 16, "units": 320, "layers": 4,
        "first_window": 6, "window": 2, "optimizer": "adamw", "learning_rate": 0.001,
        "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-8, "grad_clip": 5.0,
        "weight_decay": 0.0, "dropout": 0.0, "zoneout": 0.0, "max_length": 300,
        "learning_rate_decay": 1.0,
    }  # fmt: skip
    assert {name: getattr(options, name) for name in expected} == expected
    assert (parsed.beam, parsed.alpha) == (8, 0.6)
    assert str(train.save_path_of(parsed, options)) == "translation-qrnn_model"
    parsed = train.parser().parse_args(["--lstm", "--dataset", "sample"])
    options = train.options_from(parsed)
    assert options.cell == "lstm" and options.units == PRESETS["sample"]["units"]
    assert str(train.save_path_of(parsed, options)) == "translation-lstm_sample"


def test_what_a_run_leaves(trained, data):
    path, history, experiment = trained
    names = {each.name for each in path.iterdir()}
    assert names == {".lock", "checkpoint.npz", "log.csv", "logs", "model.keras"} | {
        "training.png", "vocabulary.json",
    }  # fmt: skip
    assert (experiment.long, experiment.empty) == (2, 1)
    assert len(experiment.pairs) == 30 and len(history) == 2
    assert history[1]["val_loss"] < history[0]["val_loss"]
    model, vocabulary = load_translation(path, "save_path")
    assert model.longest == max(map(len, experiment.pairs.source))
    assert vocabulary.words == experiment.vocabulary.words
    found = sum(int(np.prod(weight.shape)) for weight in model.weights)
    assert found == count_weights(experiment.options, len(vocabulary))


def test_a_killed_run_resumes_exactly(trained, tmp_path):
    path, history, experiment = trained

    class Kill(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if self.model.optimizer.iterations == 7 or batch == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train.shared.train_experiment(
            experiment, tmp_path, callbacks=[Kill()], verbose=0
        )
    resumed = train.shared.train_experiment(
        experiment, tmp_path, resume=True, verbose=0
    )
    for row, expected in zip(resumed, history, strict=True):
        assert row["val_loss"] == expected["val_loss"]
    models = [experiment.model(4), experiment.model(4)]
    for model, place in zip(models, (path, tmp_path), strict=True):
        load_checkpoint(place / "checkpoint.npz", model)
    for got, expected in zip(models[1].weights, models[0].weights, strict=True):
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(got), keras.ops.convert_to_numpy(expected)
        )


@needs_sacrebleu
@pytest.mark.one_backend("torch")  # what differs is tested with the translator
def test_evaluation(trained, data, capsys):
    path, *_ = trained
    given = arguments(data_dir=data, save_path=path, beam=2, **TINY)
    assert train.main([*given, "--resume"]) == 0
    out = capsys.readouterr().out
    assert "30 pairs to train on" in out and "2 pairs with a sentence of more" in out
    assert "test_a BLEU: " in out and "of 3 sentences, beam 2" in out
    record = json.loads((path / "run.json").read_text())
    assert record["signature"].startswith("nrefs:1|case:mixed") and record["beam"] == 2
    lines = (path / "translations" / "test_a.en").read_text().splitlines()
    reference = (data / "test_a.en").read_text().splitlines()
    assert record["test_a"]["bleu"] == bleu(lines, reference)[0]
    assert record["test_a"]["sentences"] == 3 and record["weights"] > 100


@needs_sacrebleu
@pytest.mark.one_backend("torch")
def test_bleu():
    right = ["the old dog sees the red wolf", "a b c d e"]
    assert bleu(right, right)[0] == pytest.approx(100)
    assert bleu(["the old dog sees a red wolf", "a b c d e"], right)[0] < 90


@pytest.mark.one_backend("torch")
def test_accuracy():
    assert accuracy(["a", "b", "c", "d"], ["a", "b", "x", "d"]) == 0.75


@pytest.mark.one_backend("torch")
def test_without_sacrebleu(data, tmp_path, monkeypatch, capsys):
    """It is missed before the training, not after it."""
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    assert train.main(arguments(data_dir=data, save_path=tmp_path / "run")) == 2
    assert "pip install '.[translation]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.one_backend("torch")
def test_sample(tmp_path, monkeypatch, capsys):
    """A small part of the sample: the accuracy stands beside the best reachable."""
    monkeypatch.setattr(
        translation_sample, "SENTENCES", {"train": 16, "valid": 2, "test": 2}
    )
    sizes = TINY | {"epochs": 1, "max_length": 60, "length_step": 60}
    given = arguments(dataset="sample", save_path=tmp_path, **sizes)
    assert train.main([*given, "--dtype_policy", "mixed_bfloat16", "--beam", "1"]) == 0
    out = capsys.readouterr().out
    assert "test accuracy: 0.0 % of 2 sentences, greedy (best reachable: 100 %)" in out
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["test"]["accuracy"] == 0 and "signature" not in record


# translate.py


def test_translate(trained, tmp_path, monkeypatch, capsys):
    path, _, experiment = trained
    lines = ["\ufeffab", "", "д" * 9, "bc"]  # some editors write a mark
    plot = tmp_path / "attention.png"
    given = arguments(load_path=path, beam=2, batch_size=2, plot_attention=plot)
    text = io.BytesIO("".join(f"{line}\n" for line in lines).encode())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(text))
    assert translate.main(given) == 0
    done = capsys.readouterr()
    lines[0] = "ab"
    assert plot.read_bytes().startswith(b"\x89PNG")
    model, vocabulary = load_translation(str(path))
    translator = translate.Translator(model, vocabulary, beam=2, batch_size=2)
    assert done.out.splitlines() == translator.translate(lines)
    assert done.err.count("\n") == 2
    longest = experiment.longest
    assert "line 3 has 9 characters. The longest" in done.err
    assert f"trained on has {longest}: " in done.err
    assert "line 3 has characters that the model does not know" in done.err
    assert done.err.rstrip().endswith(": д")


BAD = {
    "beam": ({"beam": 0}, "Option `beam` must be a positive integer"),
    "alpha": ({"alpha": -1}, "Option `alpha` must not be negative"),
    "batch": ({"batch_size": 0}, "Option `batch_size` must be a positive integer"),
    "no run": ({"load_path": "nowhere"}, "that train_translation.py wrote"),
    "plot": ({"plot_attention": "."}, "must name a file"),
    "picture": ({"plot_attention": "a.xyz"}, "`plot_attention` must name a file of"),
    "no suffix": ({"plot_attention": "a"}, "Received: plot_attention='a'"),
    "input": ({"input": "nowhere.txt"}, "`input` must be a file that can be read"),
    "directory": ({"input": "."}, "`input` must be a file that can be read"),
}


@pytest.mark.one_backend("torch")
@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD)
def test_bad_options_of_translate(trained, options, message, capsys):
    given = arguments(**{"load_path": trained[0], **options})
    assert translate.main(given) == 2
    assert message in capsys.readouterr().err


@pytest.mark.one_backend("torch")
def test_nothing_to_draw(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n\n"))
    given = arguments(load_path=trained[0], plot_attention=tmp_path / "a.png")
    assert translate.main(given) == 2
    assert "needs a line that is not empty. Received: none" in capsys.readouterr().err


BAD_TRAINING = {
    "beam": ({"beam": 0}, "Option `beam` must be a positive integer"),
    "length": ({"max_length": 1}, "Option `max_length` leaves no pair to train on"),
    "languages": ({"source": "en"}, "two different languages"),
    "missing": ({"target": "fr"}, "which has no train.fr"),
    "memory": ({"units": 10**6}, "must fit in the memory"),
    "sample": ({"dataset": "sample"}, "the sample is generated"),
}


@pytest.mark.one_backend("torch")
@needs_sacrebleu
@pytest.mark.parametrize(
    ("options", "message"), BAD_TRAINING.values(), ids=BAD_TRAINING
)
def test_bad_options_of_training(data, tmp_path, options, message, capsys):
    path = tmp_path / "run"
    given = arguments(**{"data_dir": data, "save_path": path, **TINY, **options})
    assert train.main(given) == 2
    assert message in capsys.readouterr().err
    assert not path.exists()
