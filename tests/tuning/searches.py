"""Shared by the tests of the search: small searches, and a fake training."""

import csv
import dataclasses
import functools
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import keras
import pytest

import search
import search_oracles
import search_tuner
from keras_qrnn.data.characters import CharacterVocabulary
from keras_qrnn.training import TrainingOptions
from search_space import Dimension, Hyperparameter
from search_task import TASKS

LM = TASKS["lm"]
OBJECTIVE = LM.objective.name
SCRIPT = Path(search.__file__)
ROOT = SCRIPT.parents[1]
PATH = os.pathsep.join(map(str, [ROOT, SCRIPT.parent, ROOT / "tests/hidden_numba"]))
trains = pytest.mark.skipif(
    keras.config.backend() == "numpy", reason="the NumPy backend does not train"
)
# Trains, and all the same is about what does not depend on the backend.
once = pytest.mark.one_backend("torch")
# A search that trains is in full where nothing is compiled, and short elsewhere.
TRIALS = 3 if keras.config.backend() == "torch" else 1
NOBODY = "http://127.0.0.1:9"  # a proxy that is not there
# A space of tiny models.
SPACE = {
    "units": "4-8", "window": "1-2", "zoneout": "0.0-0.3", "layers": 1, "dropout": 0.1,
    "emb_dim": "4,6", "pooling": "fo,ifo", "learning_rate": "0.2-0.8",
}  # fmt: skip
TINY = {**SPACE, "seq_len": 30, "batch_size": 8, "save_every": 50, "epochs": 2}


class Killed(BaseException):
    """It stands for SIGKILL."""


def arguments(**options):
    return [
        part for name, value in options.items() for part in (f"--{name}", str(value))
    ]


def environment(**more):
    variables = {k: v for k, v in os.environ.items() if "KERASTUNER" not in k}
    return variables | {"PYTHONPATH": PATH, "PYTHONUNBUFFERED": "1"} | more


def start(script, *more, variables=None, **options):
    """A process that runs `script` as a user runs the search."""
    return subprocess.Popen(
        [sys.executable, str(script), *more, *arguments(**options)],
        env=environment(**(variables or {})), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        # Where the tests run in the background of a script, SIGINT is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


def read_until(process, *words):
    """Reads and returns lines up to the first that has all `words`."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if all(word in line for word in words):
            return lines
    pytest.fail(f"ended before {words}:\n{''.join(lines)}")


def trials(path):
    with (path / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def assert_same_trials(rows, expected):
    """The trials are equal but for seconds and rounding errors of the perplexity."""
    for row, other in zip(rows, expected, strict=True):
        row, other = (
            {k: v for k, v in r.items() if k != "seconds"} for r in (row, other)
        )
        perplexities = [float(r.pop(OBJECTIVE)) for r in (row, other)]
        assert abs(perplexities[0] / perplexities[1] - 1) < 1e-4
        assert row == other


def fake_training(options, directory, callbacks, objective=OBJECTIVE):
    """A history that depends on the options alone."""
    value = 10 + options.units + options.window / 10 + (options.zoneout or 0)
    directory.mkdir(parents=True, exist_ok=True)
    history = [
        {"epoch": n + 1, objective: value / (n + 1), "seconds": 1.0}
        for n in range(options.epochs)
    ]
    for row in history:
        for callback in callbacks:
            logs = row | {"perplexity": 5.0, "loss": 5.0}
            callback.on_epoch_end(row["epoch"] - 1, logs)
    return history


def parse(name, text, task=LM):
    return Dimension.parse(Hyperparameter(task.options, name), text)


def make_tuner(path, tuner, max_trials, space=None, train=fake_training, **more):
    space = {n: parse(n, str(t)) for n, t in (SPACE | (space or {})).items()}
    oracle = search_oracles.make_oracle(tuner, space, LM.objective, max_trials, 3, 0)
    options = TrainingOptions(epochs=3)
    return search_tuner.TrialTuner(oracle, path, LM, train, options, 1, **more)


class FakeExperiment:
    """It stands for a task's experiment. It has no data and trains nothing."""

    summary = "no data"
    paths = ()
    vocabulary = CharacterVocabulary.build(["text"], 1)

    def __init__(self, objective, options):
        self.objective = objective
        self.options = options

    def prepare(self, goes_on):
        pass


def fake_task(task):
    """The task with fake experiments."""
    return dataclasses.replace(
        task,
        load=lambda data: functools.partial(FakeExperiment, task.objective.name),
        fingerprint=lambda experiment: "0123456789abcdef",
    )


def fake_train_experiment(experiment, directory, resume, callbacks, verbose):
    """It stands for `train_experiment`."""
    history = fake_training(
        experiment.options, directory, callbacks, experiment.objective
    )
    with (directory / "log.csv").open("w") as file:
        writer = csv.DictWriter(file, list(history[0]))
        writer.writeheader()
        writer.writerows(history)
    keras_file(directory / "model.keras", str(experiment.options.units))
    return history


FAKE_TASKS = {name: fake_task(task) for name, task in TASKS.items()}


def keras_file(path, content):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model", content)
