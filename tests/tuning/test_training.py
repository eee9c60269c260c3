"""Searches that train: killed and resumed, by Hyperband, with trials that diverge."""

import csv
import json
import shutil
from pathlib import Path

import pytest

import search
import search_tuner
from keras_qrnn.training.run_directory import held
from tests.tuning.searches import (
    NOBODY,
    PATH,
    SCRIPT,
    TINY,
    TRIALS,
    Killed,
    arguments,
    assert_same_trials,
    once,
    read_until,
    start,
    trains,
    trials,
)

pytestmark = trains
WITHOUT_DOCSTRINGS = Path(__file__).with_name("without_docstrings.py")


@once
def test_killed_search_ends_with_the_same_trials(
    searched, small_ptb, tmp_path, run, no_pictures
):
    """SIGKILL in the middle of the second trial. Python runs with `-OO`."""
    options = {"data_dir": small_ptb, "save_path": tmp_path / "s", **TINY}
    process = start(WITHOUT_DOCSTRINGS, str(SCRIPT), **options, max_trials=2)
    read_until(process, "Trial 1, epoch 1/2")
    process.kill()
    process.communicate()
    first = (tmp_path / "s" / "trial_0" / "trial.json").read_bytes()
    code, printed, _ = run(**options, max_trials=2)
    assert code == 0
    assert "Trial 0 of" not in printed and "Trial 1 of 2 runs again" in printed
    assert (tmp_path / "s" / "trial_0" / "trial.json").read_bytes() == first
    assert_same_trials(trials(tmp_path / "s"), trials(searched[0])[:2])


def test_interrupted_training_ends_with_the_same_trials(
    searched, small_ptb, tmp_path, monkeypatch, run, no_pictures
):
    """The same in one process, on each backend."""
    count = min(TRIALS, 2)
    last = str(count - 1)
    options = {"data_dir": small_ptb, "save_path": tmp_path / "s", **TINY}

    def killed(self, epoch, logs):
        if self._trial_id == last:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(search_tuner.Progress, "on_epoch_end", killed)
        run(**options, max_trials=count)
    code, printed, _ = run(**options, max_trials=count)
    assert code == 0
    assert printed.count(" runs again") == 1
    assert f"Trial {last} of {count} runs again" in printed
    assert_same_trials(trials(tmp_path / "s"), trials(searched[0])[:count])


@once
def test_going_on_refusal_and_overwriting(
    searched, small_ptb, tmp_path, capsys, no_pictures
):
    path = Path(shutil.copytree(searched[0], tmp_path / "s"))
    before = (path / "trials.csv").read_text()
    options = {"data_dir": small_ptb, "save_path": path, **TINY, "max_trials": 3}
    # Nothing is left to do.
    assert search.main(arguments(**options)) == 0
    assert " runs" not in capsys.readouterr().out
    assert (path / "trials.csv").read_text() == before
    for other, message in (
        ({"units": "4-9"}, "units='4-8'. Received: units='4-9'"),
        ({"tuner": "grid"}, "tuner='random'. Received: tuner='grid'"),
        ({"epochs": 3}, "epochs=2. Received: epochs=3"),
        ({"seed": 1}, "seed=0. Received: seed=1"),
        ({"max_tokens": 500}, "another one, with data="),
    ):
        assert search.main(arguments(**(options | other))) == 2
        error = capsys.readouterr().err
        assert message in error and "--overwrite" in error
    assert (path / "trials.csv").read_text() == before
    with held(path, "searched"):
        assert search.main(arguments(**options)) == 2
    assert "is being searched by another process" in capsys.readouterr().err
    # More trials than at first, and then anew.
    assert search.main(arguments(**(options | {"max_trials": 4}))) == 0
    assert (path / "trials.csv").read_text().startswith(before.rstrip("\n"))
    assert len(trials(path)) == 4
    other = options | {"max_trials": 1, "units": 4}
    assert search.main([*arguments(**other), "--overwrite"]) == 0
    assert [row["units"] for row in trials(path)] == ["4"]
    assert not (path / "trial_1").exists()


@once
def test_hyperband_trains_the_best_further(small_ptb, tmp_path, no_pictures):
    """The best of three trials of one epoch goes on to three epochs."""
    path = tmp_path / "s"
    options = {**TINY, "epochs": 3, "tuner": "hyperband", "max_trials": 4}
    assert search.main(arguments(data_dir=small_ptb, save_path=path, **options)) == 0
    rows = trials(path)
    assert [row["epochs"] for row in rows] == ["1", "1", "1", "3"]
    parent = min(rows[:3], key=lambda row: float(row["val_perplexity"]))
    assert rows[3]["units"] == parent["units"]
    logs = [
        list(csv.DictReader((path / f"trial_{n}" / "execution_0" / "log.csv").open()))
        for n in (parent["trial"], rows[3]["trial"])
    ]
    assert logs[1][0] == logs[0][0] and len(logs[1]) == 3
    assert not list(path.rglob("*.npz"))


@once
def test_mean_of_executions_with_different_seeds(small_ptb, tmp_path, no_pictures):
    path = tmp_path / "s"
    options = {**TINY, "max_trials": 1, "executions_per_trial": 2, "epochs": 1}
    assert search.main(arguments(data_dir=small_ptb, save_path=path, **options)) == 0
    values = [
        float(next(csv.DictReader((path / "trial_0" / name / "log.csv").open()))[
            "val_perplexity"
        ])
        for name in ("execution_0", "execution_1")
    ]  # fmt: skip
    assert values[0] != values[1]
    (row,) = trials(path)
    assert float(row["val_perplexity"]) == pytest.approx(sum(values) / 2)
    assert len(list(path.rglob("model.keras"))) == 1


@once
def test_diverged_trials_fail_and_the_search_goes_on(
    small_ptb, tmp_path, capsys, no_pictures
):
    path = tmp_path / "s"
    options = {**TINY, "tuner": "grid", "units": 4, "window": 1, "zoneout": 0}
    options |= {"pooling": "fo", "emb_dim": 4, "learning_rate": "1e30,0.5"}
    assert search.main(arguments(data_dir=small_ptb, save_path=path, **options)) == 0
    rows = trials(path)
    assert [row["status"] for row in rows] == ["FAILED", "COMPLETED"]
    assert rows[0]["error"].startswith("Diverged: val_perplexity")
    assert rows[0]["val_perplexity"] == ""
    assert "Trial 0000 failed: Diverged" in capsys.readouterr().out
    assert json.loads((path / "best.json").read_text())["learning_rate"] == 0.5
    assert not (path / "trial_0" / "model.keras").exists()


@once
def test_none_that_completed_is_an_error(small_ptb, tmp_path, capsys, no_pictures):
    options = {**TINY, "learning_rate": 1e30, "max_trials": 1}
    path = tmp_path / "s"
    assert search.main(arguments(data_dir=small_ptb, save_path=path, **options)) == 2
    assert "None of 1 trials came to an end" in capsys.readouterr().err
    assert trials(path)[0]["status"] == "FAILED"


@once
def test_early_stopping(small_ptb, tmp_path, no_pictures):
    """With a learning rate of zero, the second epoch is not better than the first."""
    options = {**TINY, "learning_rate": 1e-30, "max_trials": 1, "epochs": 9}
    options["early_stopping"] = 2
    path = tmp_path / "s"
    assert search.main(arguments(data_dir=small_ptb, save_path=path, **options)) == 0
    (row,) = trials(path)
    assert (row["epochs"], row["best_epoch"]) == ("3", "1")


def test_a_worker_of_its_own_behind_a_proxy(
    small_ptb, tmp_path, monkeypatch, run, no_pictures
):
    """One worker trains in a process of its own, on each backend."""
    monkeypatch.setenv("PYTHONPATH", PATH)
    monkeypatch.setenv("http_proxy", NOBODY)
    options = TINY | {"epochs": 1, "max_trials": 1, "workers": 1, "max_tokens": 400}
    code, printed, error = run(data_dir=small_ptb, save_path=tmp_path / "s", **options)
    assert code == 0, error
    assert "worker0: Trial 0, epoch 1/1: perplexity" in printed
    assert [row["status"] for row in trials(tmp_path / "s")] == ["COMPLETED"]
