"""The tuners: the trials that they choose, and trials that fail."""

import contextlib
import os

import pytest
from keras_tuner.engine.trial import TrialStatus
from keras_tuner.errors import FatalError

import search
import search_directory
import search_tuner
from keras_qrnn.training.run_directory import held
from tests.tuning.searches import (
    LM,
    TINY,
    FakeExperiment,
    arguments,
    fake_train_experiment,
    fake_training,
    make_tuner,
    trials,
)

pytestmark = pytest.mark.one_backend  # no search trains here


def test_grid_covers_the_grid_once(tmp_path, no_training):
    space = {"units": "4,8", "window": "1-3", "zoneout": 0.1, "emb_dim": 4}
    space |= {"learning_rate": 1}
    oracle = make_tuner(tmp_path / "s", "grid", None, space).oracle
    make_tuner(tmp_path / "s", "grid", 5, space).search()
    resumed = make_tuner(tmp_path / "s", "grid", None, space)
    resumed.search()
    found = [
        tuple(
            trial.hyperparameters.values[name]
            for name in ("units", "window", "pooling")
        )
        for trial in resumed.oracle.trials.values()
    ]
    assert len(found) == len(set(found)) == 2 * 3 * 2
    assert not oracle.trials


@pytest.mark.parametrize("tuner", ["random", "bayesian"])
def test_small_spaces_end_and_nothing_is_tried_twice(tuner, tmp_path, no_training):
    space = {"units": "4-9", "window": "1-2", "zoneout": 0.1, "emb_dim": 4}
    space |= {"learning_rate": 1, "pooling": "fo"}
    searched = make_tuner(tmp_path / "s", tuner, 30, space)
    searched.search()
    found = [tuple(t.hyperparameters.values.values()) for t in
             searched.oracle.trials.values()]  # fmt: skip
    assert 8 <= len(found) == len(set(found)) <= 12
    best = searched.oracle.get_best_trials()[0]
    assert best.hyperparameters.values["units"] == 4


def test_tidy_of_a_trial_that_failed_before_its_first_epoch(tmp_path):
    """Hyperband's trials begin with the model of the trial before."""
    execution = tmp_path / "execution_0"
    execution.mkdir()
    for name in ("model.keras", "model.epoch3.keras", "checkpoint.npz"):
        (execution / name).write_bytes(b"copied")
    search_directory.write_error(tmp_path, "MemoryError")
    search_directory.tidy(tmp_path, LM.objective)
    assert not list(execution.iterdir())


def test_a_trial_waits_for_its_old_worker(tmp_path, monkeypatch, capsys, no_training):
    """A worker on another machine still runs after its chief was started again."""
    searched = make_tuner(tmp_path / "s", "random", 1)
    directory = tmp_path / "s" / "trial_0" / "execution_0"
    with contextlib.ExitStack() as old_worker:
        old_worker.enter_context(held(directory, "trained in"))
        monkeypatch.setattr(search_tuner.time, "sleep", lambda _: old_worker.close())
        searched.search()
    assert capsys.readouterr().out.count("Trial 0 waits") == 1
    (trial,) = searched.oracle.trials.values()
    assert trial.status == TrialStatus.COMPLETED


def test_a_trial_does_not_wait_for_a_worker_that_hangs(
    tmp_path, monkeypatch, no_training
):
    """The old worker writes now and then, and then no more."""
    searched = make_tuner(tmp_path / "s", "random", 1, max_wait=2)
    directory = tmp_path / "s" / "trial_0" / "execution_0"
    now = [0.0]

    def sleep(seconds):
        now[0] += 50
        if now[0] < 500:
            (directory / "checkpoint.npz").write_text(str(now[0]))
            os.utime(directory / "checkpoint.npz", (now[0], now[0]))

    monkeypatch.setattr(search_tuner.time, "sleep", sleep)
    monkeypatch.setattr(search_tuner.time, "monotonic", lambda: now[0])
    with (
        held(directory, "trained in"),
        pytest.raises(
            FatalError, match=r"execution_0 is being trained in .* 2 minutes"
        ),
    ):
        searched.search()
    assert now[0] == 600
    assert searched.oracle.ongoing_trials  # the next start runs it again


def test_many_diverged_trials(tmp_path, no_training):
    def diverges(options, directory, callbacks):
        history = fake_training(options, directory, callbacks)
        history[-1]["val_perplexity"] = float("nan" if options.units % 2 else "inf")
        return history

    searched = make_tuner(tmp_path / "s", "random", 8, train=diverges)
    searched.search()
    assert searched.oracle.failure is None
    statuses = [trial.status for trial in searched.oracle.trials.values()]
    assert statuses == [TrialStatus.FAILED] * 8


def test_errors_in_a_row_stop_the_search(tmp_path, monkeypatch, capsys, no_training):
    def breaks(*args, **more):
        raise ValueError("a bug")

    monkeypatch.setattr(search, "train_experiment", breaks)
    options = arguments(save_path=tmp_path / "s", **TINY)
    assert search.main(options) == 2
    error = capsys.readouterr().err
    assert "3 trials in a row broke, the last with: ValueError: a bug" in error
    assert len(list((tmp_path / "s").glob("trial_*/error.txt"))) == 3
    assert "breaks" in (tmp_path / "s" / "trial_00" / "error.txt").read_text()


def test_output_that_nobody_reads_stops_the_search(
    tmp_path, monkeypatch, capsys, no_training
):
    def unread(*args, **more):
        raise BrokenPipeError

    options = arguments(save_path=tmp_path / "s", **(TINY | {"max_trials": 1}))
    with monkeypatch.context() as patch:
        patch.setattr(search, "train_experiment", unread)
        assert search.main(options) == 1
    error = capsys.readouterr().err
    assert error == (
        "search.py: stopped: the program that reads its output has ended. "
        "Start it again and it goes on.\n"
    )
    assert search.main(options) == 0
    assert "Trial 0 of 1 runs again" in capsys.readouterr().out


@pytest.mark.parametrize("where", ["training", "events"])
def test_a_full_disk_stops_the_search_and_no_trial_is_blamed(
    tmp_path, monkeypatch, capsys, no_training, where
):
    def full(*args, **more):
        raise OSError(28, "No space left on device", "model.keras")

    options = arguments(save_path=tmp_path / "s", **(TINY | {"max_trials": 1}))
    with monkeypatch.context() as patch:
        if where == "training":
            patch.setattr(search, "train_experiment", full)
        else:
            patch.setattr(search_tuner, "write_session", full)
        assert search.main(options) == 2
    error = capsys.readouterr().err
    assert "No space left on device: 'model.keras'" in error
    assert len(error.splitlines()) == 1
    assert search.main(options) == 0
    assert "Trial 0 of 1 runs again" in capsys.readouterr().out


@pytest.mark.parametrize("why", ["breaks", "waits", "no place"])
def test_a_search_that_fails_leaves_its_results(
    tmp_path, monkeypatch, run, no_training, why
):
    """After one good trial. No experiment is made again for the results."""

    def full(*_):
        raise OSError(28, "No space left on device")

    made, path = [], tmp_path / "s"
    make = FakeExperiment.__init__
    monkeypatch.setattr(
        FakeExperiment, "__init__", lambda *each: (made.append(each), make(*each))[1]
    )

    def train(experiment, directory, *args, **more):
        if (path / "trial_0").exists() and "trial_0" not in str(directory):
            if why == "waits":
                raise FatalError("waits")
            raise ValueError("a bug")
        return fake_train_experiment(experiment, directory, *args, **more)

    monkeypatch.setattr(search, "train_experiment", train)
    if why == "no place":
        monkeypatch.setattr(type(FakeExperiment.vocabulary), "save", full)
    code, _, error = run(save_path=path, **(TINY | {"max_trials": 9}))
    assert code == 2 and error.count("\n") == 1
    assert ("waits" if why == "waits" else "a bug") in error
    assert ("The results were not written: [Errno 28]" in error) == (why == "no place")
    assert len(made) == 1 + (2 if why == "waits" else 4)  # each trial makes its own
    rows = trials(path)
    statuses = ["COMPLETED"] + ["FAILED"] * (3 if why != "waits" else 0)
    assert [row["status"] for row in rows] == statuses
    if why != "no place":
        assert (path / "best.json").exists() and (path / "best_model.keras").exists()
        assert (path / "vocabulary.json").exists()
