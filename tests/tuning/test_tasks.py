"""Searches of sentiment and translation, and pictures of a metric that shall rise."""

import csv
import json
import shlex
import zipfile
from dataclasses import asdict

import matplotlib.figure
import numpy as np
import pytest

import search_plots
from keras_qrnn.data import sentiment_sample, translation_sample
from keras_qrnn.training import load_sentiment
from keras_qrnn.training.translation import load_translation
from search_task import TASKS
from tests.examples.programs import script
from tests.tuning.searches import once, parse, trains, trials

SIZES = {"units": "3-4", "layers": 1, "window": 1, "dropout": "0.0-0.2", "emb_dim": 2}
SIZES |= {"pooling": "fo", "learning_rate": "0.01-0.1", "save_every": 2, "epochs": 1}
SMALL = {
    "sentiment": SIZES | {"zoneout": 0, "batch_size": "16,20", "valid_size": 20},
    "translation": SIZES | {"first_window": 2, "length_step": 60, "batch_size": 8},
}
LOADS = {"sentiment": load_sentiment, "translation": load_translation}


@pytest.fixture
def small_samples(monkeypatch):
    sizes = {"train": 60, "test": 8}
    monkeypatch.setattr(sentiment_sample, "REVIEWS", sizes)
    sizes = {"train": 16, "valid": 4, "test": 4}
    monkeypatch.setattr(translation_sample, "SENTENCES", sizes)


@trains
@once
@pytest.mark.parametrize("name", SMALL)
def test_a_search_of_another_task(
    name, tmp_path, run, no_pictures, small_samples, monkeypatch
):
    task, path = TASKS[name], tmp_path / "s"
    objective = task.objective
    options = {"task": name, "dataset": "sample", "save_path": path, **SMALL[name]}
    code, printed, error = run(**options, max_trials=1)
    assert code == 0, error
    assert f"Trial 0, epoch 1/1: {task.experiment.watched} " in printed
    code, printed, error = run(**options, max_trials=3)
    assert code == 0, error
    assert "Goes on" in printed and "Trial 0 of" not in printed
    rows = trials(path)
    assert [row["status"] for row in rows] == ["COMPLETED"] * 3
    choose = min if objective.direction == "min" else max
    best = choose(rows, key=lambda row: float(row[objective.name]))
    assert (
        printed.partition("The best:")[2].split("\n\n")[1].splitlines()[1].split()[0]
        == best["trial"]
    )
    # The trial's own log says the same.
    log = path / f"trial_{best['trial']}" / "execution_0" / "log.csv"
    with log.open() as file:
        (epoch,) = csv.DictReader(file)
    assert float(epoch[objective.name]) == float(best[objective.name])
    # The best model and its vocabulary, as the task loads them.
    (path / "best_model.keras").rename(path / "model.keras")
    model, _ = LOADS[name](path, "load_path")
    assert model.get_config()["units"] == int(best["units"])
    # The printed command trains the best in full.
    (line,) = (li for li in printed.splitlines() if li.startswith("Train the best"))
    _, program, *words = shlex.split(line.partition(": ")[2])
    assert program == task.program
    module = script(program.removeprefix("examples/").removesuffix(".py"))
    arguments = module.parser().parse_args(words)
    found = asdict(module.options_from(arguments))
    for each in ("units", "dropout", "learning_rate", "batch_size"):
        value = type(found[each])(best.get(each, SMALL[name].get(each)))
        assert found[each] == value, each
    assert found["optimizer"] == "adamw" and found["save_every"] == 100
    assert found["epochs"] == task.options(**task.recipes["sample"].options).epochs
    if name == "sentiment":
        assert module.shared.data_from(arguments, task.data).valid_size == 20


@pytest.mark.one_backend
@pytest.mark.parametrize("name", ["lm", "sentiment"])
def test_the_best_in_pictures(name, tmp_path, monkeypatch):
    """The star, the steps and the line on top are those of the best trial."""
    task, drawn = TASKS[name], []
    monkeypatch.setattr(
        matplotlib.figure.Figure,
        "savefig",
        lambda self, path, **_: (drawn.append(self), path.write_bytes(b"")),
    )
    space = {"units": parse("units", "4-8", task), "layers": parse("layers", "1", task)}
    values = [0.5, 0.25, 0.75] if name == "sentiment" else [50.0, 75.0, 25.0]
    rows = [
        {task.objective.name: value, "units": 4 + n, "layers": 1}
        for n, value in enumerate(values)
    ]
    arguments = space, task.objective
    search_plots.plot_objective(tmp_path / "a.png", rows, task.objective)
    search_plots.plot_hyperparameters(tmp_path / "b.png", rows, *arguments)
    search_plots.plot_parallel(tmp_path / "c.png", rows, *arguments)
    (first,), (second,), (third, *_) = (figure.axes[:1] for figure in drawn)
    label = "validation accuracy" if name == "sentiment" else "validation perplexity"
    assert first.get_ylabel() == second.get_ylabel() == label
    for axis in (first, second):
        (star,) = (line for line in axis.lines if line.get_marker() == "*")
        assert star.get_ydata()[0] == values[2]
    steps = first.lines[0].get_ydata()
    assert list(steps) == [values[0], values[0], values[2], values[2]]
    assert third.lines[-1].get_color() == "C3"
    ends = np.array([line.get_ydata()[-1] for line in third.lines])
    assert ends[-1] == (ends.max() if name == "sentiment" else ends.min())


@pytest.mark.one_backend
@pytest.mark.parametrize("name", ["sentiment", "translation"])
def test_any_task_by_any_tuner(name, tmp_path, run, no_training):
    """The tuner looks for the end of the metric that the task says."""
    objective = TASKS[name].objective
    options = {"task": name, "dataset": "sample", "units": "4-8", "tuner": "grid"}
    options |= dict.fromkeys(("layers", "window", "zoneout", "dropout"), 1)
    options |= {"zoneout": 0.1, "dropout": 0.1, "pooling": "fo", "emb_dim": 4}
    options |= {"learning_rate": 0.1, "first_window": 2, "epochs": 1}
    code, printed, error = run(save_path=tmp_path / "s", **options)
    assert code == 0, error
    rows = trials(tmp_path / "s")
    units = [int(row["units"]) for row in rows]
    best = json.loads((tmp_path / "s" / "best.json").read_text())
    expected = min(units) if objective.direction == "min" else max(units)
    assert best["units"] == expected and f"{objective.name} " in printed
    # The kept model is that of the best, and its file says its units.
    with zipfile.ZipFile(tmp_path / "s" / "best_model.keras") as archive:
        assert archive.read("model") == str(expected).encode()


@pytest.mark.one_backend
@pytest.mark.parametrize("name", ["lm", "sentiment"])
def test_tuners_go_where_the_metric_is_better(name, tmp_path, run, no_training):
    """The fake metric rises with the units. For sentiment that is better."""
    options = {"task": name, "dataset": "sample", "units": "4-99", "emb_dim": 4}
    options |= dict.fromkeys(("layers", "window"), 1) | {"pooling": "fo"}
    options |= {"zoneout": 0.1, "dropout": 0.1, "learning_rate": 0.1}
    choose = max if TASKS[name].objective.direction == "max" else min

    def units(tuner, epochs, max_trials):
        path = tmp_path / tuner
        more = {"tuner": tuner, "epochs": epochs, "max_trials": max_trials}
        code, _, error = run(save_path=path, **options, **more)
        assert code == 0, error
        return [int(row["units"]) for row in trials(path)]

    # Hyperband trains the best of the first three further.
    *first, last = units("hyperband", 3, 4)
    assert last == choose(first)
    # The first three are random. Gaussian processes choose the others.
    *_, fourth, fifth, sixth = units("bayesian", 1, 6)
    assert choose(fourth, fifth, sixth) == choose(4, 99)
