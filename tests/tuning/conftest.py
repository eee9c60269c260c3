"""Fixtures of the search's tests: a fake training, a finished search."""

import contextlib
import io
from pathlib import Path

import matplotlib.figure
import pytest

import search
import search_results
import search_tuner
from tests.tuning.searches import (
    FAKE_TASKS,
    TINY,
    TRIALS,
    arguments,
    fake_train_experiment,
)


def no_pictures_in(patch):
    """Pictures are drawn, but not written: writing takes the time."""

    def savefig(self, path, **kwargs):
        Path(path).write_bytes(b"")

    patch.setattr(matplotlib.figure.Figure, "savefig", savefig)


def no_training_in(patch):
    """Trials take no time, and pictures are not drawn."""
    patch.setattr(search, "TASKS", FAKE_TASKS)
    patch.setattr(search, "train_experiment", fake_train_experiment)
    patch.setattr(search_tuner.gc, "collect", lambda: None)
    patch.setattr(search_tuner.keras.utils, "clear_session", lambda: None)
    patch.setattr(search_tuner, "write_session", lambda *args: None)
    for name in ("objective", "hyperparameters", "parallel"):
        patch.setattr(search_results, f"plot_{name}", lambda *_: None)


@pytest.fixture
def no_pictures(monkeypatch):
    no_pictures_in(monkeypatch)


@pytest.fixture
def no_training(monkeypatch):
    no_training_in(monkeypatch)


@pytest.fixture(scope="session")
def searched(small_ptb, tmp_path_factory):
    """A search of `TRIALS` trials, and what it printed."""
    path = tmp_path_factory.mktemp("search") / "whole"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        options = arguments(
            data_dir=small_ptb, save_path=path, **TINY, max_trials=TRIALS
        )
        assert search.main(options) == 0
    return path, printed.getvalue()


@pytest.fixture
def run(capsys):
    """Runs the search in this process. Returns exit code, output and errors."""

    def run(*more, **options):
        capsys.readouterr()  # of a call that was killed
        code = search.main([*arguments(**options), *more])
        return code, *capsys.readouterr()

    return run
