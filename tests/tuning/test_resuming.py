"""A search after a kill, with damaged or missing files: it resumes or says why."""

import contextlib
import io
import json
import os
import shlex
import shutil
import tempfile
import zipfile
from dataclasses import asdict
from pathlib import Path

import keras
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras_tuner.engine.trial import TrialStatus

import search
import search_directory
import search_oracles
import search_tuner
from keras_qrnn.training import TrainingOptions
from keras_qrnn.training.run_directory import held
from search_oracles import TUNERS
from tests.tuning.conftest import no_training_in
from tests.tuning.searches import (
    TINY,
    Killed,
    arguments,
    keras_file,
    make_tuner,
    trials,
)

pytestmark = pytest.mark.one_backend  # no search trains here


def test_a_directory_of_other_files_is_left_alone(small_ptb, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("years of work")
    options = arguments(data_dir=small_ptb, save_path=tmp_path, **TINY)
    assert search.main([*options, "--overwrite"]) == 2
    assert "holds other files than a search's" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("tuner", TUNERS)
def test_no_trial_is_lost_or_repeated_wherever_it_is_killed(
    tuner, tmp_path, monkeypatch, no_training
):
    """The search is killed at its first write, then at its second, and so on."""
    count_of_trials = 4 if tuner == "bayesian" else 5  # its model takes its time
    write = search_oracles.write_state
    left = None

    def write_or_die(path, value):
        nonlocal left
        left -= 1
        if left < 0:
            # Before it is written; the next count dies after it.
            raise Killed
        write(path, value)

    monkeypatch.setattr(search_oracles, "write_state", write_or_die)

    def values(oracle):
        return {n: t.hyperparameters.values for n, t in oracle.trials.items()}

    def finished(path):
        found = {}
        for file in path.glob("trial_*/trial.json"):
            state = json.loads(file.read_text())
            if state["status"] == TrialStatus.COMPLETED:
                found[file.parent.name] = file.read_bytes()
        return found

    left = 10**6
    whole = make_tuner(tmp_path / "whole", tuner, count_of_trials)
    whole.search()
    writes = 10**6 - left
    assert len(whole.oracle.trials) == count_of_trials
    for count in range(writes):
        path = tmp_path / str(count)
        left = count
        with pytest.raises(Killed):
            make_tuner(path, tuner, count_of_trials).search()
        before = finished(path)
        left = 10**6
        resumed = make_tuner(path, tuner, count_of_trials)
        resumed.search()
        after = finished(path)
        assert len(after) == len(resumed.oracle.end_order) == count_of_trials
        assert before.items() <= after.items()
        scores = [t.score for t in resumed.oracle.trials.values()]
        assert all(len(t.metrics.get_history("seconds")[0].value) == 1
                   for t in resumed.oracle.trials.values()), scores  # fmt: skip
        if tuner in ("random", "grid"):
            assert values(resumed.oracle) == values(whole.oracle)


def test_a_search_that_was_killed_at_its_first_write(tmp_path, run, no_training):
    path = tmp_path / "s"
    path.mkdir()
    (path / ".lock").touch()
    (path / ".search.json.unfinished-0123.json").write_text("{")
    assert run(save_path=path, **TINY, max_trials=1)[0] == 0
    assert len(trials(path)) == 1 and not list(path.glob(".search*"))


# Files that are damaged or gone


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A search of three trials, without training. Tests copy it."""
    path = tmp_path_factory.mktemp("finished") / "s"
    with pytest.MonkeyPatch.context() as patch:
        no_training_in(patch)
        assert search.main(arguments(save_path=path, **TINY, max_trials=3)) == 0
    return path


STATES = ("search.json", "oracle.json", "trial_1/trial.json")
DAMAGES = {
    "empty": lambda data: b"",
    "truncated": lambda data: data[: len(data) // 2],
    "no object": lambda data: b"[1, 2]",
    "null": lambda data: b"null",
    "other": lambda data: b'{"start_order": 5}',
    "nested": lambda data: b"[" * 100_000,
    "nested objects": lambda data: b'{"a":' * 100_000,
    "binary": lambda data: bytes(range(256)),
    "a long number": lambda data: b'{"a": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("file", STATES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_one_line(
    finished, tmp_path, run, no_training, file, damage
):
    path = Path(shutil.copytree(finished, tmp_path / "s"))
    (path / file).write_bytes(DAMAGES[damage]((path / file).read_bytes()))
    code, _, error = run(save_path=path, **TINY, max_trials=4)
    assert code == 2
    assert error.startswith("search.py: error: ") and len(error.splitlines()) == 1
    assert f"{path / file}" in error or "is another one" in error
    # What the message advises.
    if file == "trial_1/trial.json":
        (path / file).unlink()
        assert run(save_path=path, **TINY, max_trials=4)[0] == 0
        assert len(trials(path)) == 4
    else:
        assert run("--overwrite", save_path=path, **TINY, max_trials=1)[0] == 0
        assert len(trials(path)) == 1


@pytest.mark.parametrize("file", STATES)
@given(data=st.data())
def test_a_flipped_bit_is_one_line_or_no_harm(finished, file, data):
    with (
        tempfile.TemporaryDirectory() as name,
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()) as errors,
    ):
        no_training_in(patch)
        path = Path(shutil.copytree(finished, Path(name, "s")))
        content = bytearray((path / file).read_bytes())
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] ^= 1 << data.draw(st.integers(0, 7))
        (path / file).write_bytes(content)
        code = search.main(arguments(save_path=path, **TINY, max_trials=3))
        if code == 0:
            expected = (finished / "trials.csv").read_text()
            assert (path / "trials.csv").read_text() == expected
        else:
            assert code == 2 and len(errors.getvalue().splitlines()) == 1


@given(data=st.data())
def test_a_flipped_bit_in_the_best_model(finished, data):
    """The damage is found, unless the archive keeps nothing of the model there."""
    with (
        tempfile.TemporaryDirectory() as name,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()) as errors,
        pytest.MonkeyPatch.context() as patch,
    ):
        no_training_in(patch)
        path = Path(shutil.copytree(finished, Path(name, "s")))
        model = path / best_trial(path) / "model.keras"
        content = bytearray(model.read_bytes())
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] ^= 1 << data.draw(st.integers(0, 7))
        model.write_bytes(content)
        code = search.main(arguments(save_path=path, **TINY, max_trials=3))
        if code:
            assert code == 2 and len(errors.getvalue().splitlines()) == 1
            assert f"{model} is damaged" in errors.getvalue()
            # The rest is there, and the copy of before.
            assert len(trials(path)) == 3 and (path / "best_model.keras").exists()
        else:
            with zipfile.ZipFile(path / "best_model.keras") as archive:
                assert archive.read(archive.namelist()[0])


def test_an_archive_that_points_before_its_start_is_damaged(tmp_path):
    path = tmp_path / "model.keras"
    keras_file(path, "weights")
    content = bytearray(path.read_bytes())
    content[-6] += 1  # of the offset of the archive's directory
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.keras is damaged"):
        search_directory.check_zip(path, "")


def best_trial(path):
    rows = trials(path)
    best = min(rows, key=lambda row: float(row["val_perplexity"]))
    return f"trial_{best['trial']}"


@pytest.mark.parametrize(
    "name",
    [
        "BEST", "BEST/model.keras", "BEST/trial.json", "BEST/execution_0",
        "BEST/execution_0/log.csv", "trial_0", "trial_1/trial.json", "trials.csv",
        "best.json", "best_model.keras", "vocabulary.json", ".lock",
    ],
)  # fmt: skip
def test_a_search_goes_on_without_a_file(finished, tmp_path, run, no_training, name):
    path = Path(shutil.copytree(finished, tmp_path / "s"))
    before = trials(path)
    model = (path / "best_model.keras").read_bytes()
    search_directory.remove(path / name.replace("BEST", best_trial(path)))
    code, printed, error = run(save_path=path, **TINY, max_trials=3)
    assert (code, error) == (0, "")
    assert trials(path) == before and " runs" not in printed
    assert (path / "best_model.keras").read_bytes() == model
    code, printed, error = run(save_path=path, **TINY, max_trials=4)
    assert (code, error) == (0, "")
    assert trials(path)[:3] == before and printed.count(" runs") == 1


def test_a_best_model_that_was_deleted_is_said_and_no_other_takes_its_place(
    finished, tmp_path, run, no_training
):
    path = Path(shutil.copytree(finished, tmp_path / "s"))
    (path / best_trial(path) / "model.keras").unlink()
    (path / "trials.csv").unlink()  # so nothing says whose model the copy is
    code, printed, _ = run(save_path=path, **TINY, max_trials=3)
    assert code == 0
    assert "its model was deleted: there is no best_model.keras" in printed
    assert not (path / "best_model.keras").exists()


def test_a_trial_that_was_interrupted_and_deleted_is_run_again(
    tmp_path, monkeypatch, run, no_training
):
    path = tmp_path / "s"

    def killed(self, epoch, logs):
        if self._trial_id == "1":
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(search_tuner.Progress, "on_epoch_end", killed)
        run(save_path=path, **TINY, max_trials=3)
    values = json.loads((path / "trial_1" / "trial.json").read_text())
    shutil.rmtree(path / "trial_1")
    code, printed, _ = run(save_path=path, **TINY, max_trials=3)
    assert code == 0 and "Trial 1 of 3 runs again" in printed
    units = values["hyperparameters"]["values"]["units"]
    assert trials(path)[1]["units"] == str(units)


def test_without_the_oracle_the_search_does_not_go_on(
    finished, tmp_path, run, no_training
):
    path = Path(shutil.copytree(finished, tmp_path / "s"))
    (path / "oracle.json").unlink()
    code, _, error = run(save_path=path, **TINY, max_trials=3)
    assert code == 2 and len(error.splitlines()) == 1
    assert "oracle.json is missing" in error and "--overwrite" in error


def test_a_search_from_before_the_checksums_goes_on(
    finished, tmp_path, run, no_training
):
    path = Path(shutil.copytree(finished, tmp_path / "s"))
    for file in (path / "search.json", *path.rglob("trial.json")):
        state = json.loads(file.read_text())
        del state["checksum"]
        file.write_text(json.dumps(state))
    state = json.loads((path / "oracle.json").read_text())
    del state["checksum"], state["trials"]
    (path / "oracle.json").write_text(json.dumps(state))
    before = trials(path)
    assert run(save_path=path, **TINY, max_trials=4)[0] == 0
    assert trials(path)[:3] == before
    # Such a search has a trial in its own file alone.
    (path / "oracle.json").write_text(json.dumps(state))
    (path / "trial_0" / "trial.json").unlink()
    code, _, error = run(save_path=path, **TINY, max_trials=4)
    assert code == 2 and "trial.json is missing" in error


def test_a_damaged_checkpoint_stops_the_search_and_no_trial_is_blamed(
    tmp_path, monkeypatch, run, no_training
):
    checkpoint = tmp_path / "s" / "trial_0" / "execution_0" / "checkpoint.npz"

    def killed(self, epoch, logs):
        keras_file(checkpoint, "weights")
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(search_tuner.Progress, "on_epoch_end", killed)
        run(save_path=tmp_path / "s", **TINY, max_trials=1)
    content = bytearray(checkpoint.read_bytes())
    content[content.index(b"weights")] ^= 1
    checkpoint.write_bytes(content)
    code, _, error = run(save_path=tmp_path / "s", **TINY, max_trials=1)
    assert code == 2 and len(error.splitlines()) == 1
    assert f"{checkpoint} is damaged" in error and "Delete it" in error
    checkpoint.unlink()
    code, printed, _ = run(save_path=tmp_path / "s", **TINY, max_trials=1)
    assert code == 0 and "Trial 0 of 1 runs again" in printed


# Names, and a deletion that was killed


@pytest.mark.parametrize(
    "name", ["lr[0.5]", "[a-z]*?", "{a,b}", "**", 'a b\'s "c"', "-x", "%s%d", "µ~$HOME"]
)
def test_any_name_of_a_directory(tmp_path, run, no_training, name):
    path = tmp_path / name
    code, printed, _ = run(f"--save_path={path}", **TINY, max_trials=1)
    assert code == 0
    (line,) = (li for li in printed.splitlines() if li.startswith("Train the best"))
    assert shlex.split(line)[-1] == str(path / "best.json")
    assert shlex.split(printed.splitlines()[-1])[-1] == str(path)
    before = trials(path)
    code, printed, _ = run(f"--save_path={path}", **TINY, max_trials=2)
    assert code == 0 and "Goes on" in printed
    assert trials(path)[:1] == before and len(trials(path)) == 2


def test_overwriting_can_be_killed_at_any_point(
    finished, tmp_path, monkeypatch, run, no_training
):
    """The kill comes at each deletion and at each write."""
    other = TINY | {"units": 4, "max_trials": 1}
    left = None

    def dying(function):
        def call(*args, **kwargs):
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return function(*args, **kwargs)

        return call

    assert run(save_path=tmp_path / "fresh", **other)[0] == 0
    expected = search_directory.read_state(tmp_path / "fresh" / "search.json")
    names = {"unlink": os.unlink, "rmdir": os.rmdir, "replace": os.replace}
    points, left = 0, 0
    while left <= 0:
        path = Path(shutil.copytree(finished, tmp_path / str(points)))
        with monkeypatch.context() as patch, held(path, "searched"):
            for name, function in names.items():
                patch.setattr(os, name, dying(function))
            left = points
            try:
                search_directory.prepare(path, expected, TrainingOptions, True)
                break
            except Killed:
                pass
            left = 0
        options = other if points else TINY | {"max_trials": 3}
        code, _, error = run(save_path=path, **options)
        assert (code, error) == (0, ""), points
        assert len(trials(path)) == options["max_trials"]
        points += 1
    assert points > 20


def test_overwriting_deletes_a_link_and_not_what_it_points_to(
    finished, tmp_path, run, no_training
):
    path = Path(shutil.copytree(finished, tmp_path / "s"))
    (path / "trial_0").rename(tmp_path / "elsewhere")
    (path / "trial_0").symlink_to(tmp_path / "elsewhere")
    options = TINY | {"units": 4, "max_trials": 1}
    assert run("--overwrite", save_path=path, **options)[0] == 0
    assert (tmp_path / "elsewhere" / "trial.json").exists()


def test_record_from_before_an_option_was_added(tmp_path):
    path = tmp_path / "search.json"
    options = {"task": "lm"} | asdict(TrainingOptions(tied=False))
    before = {n: value for n, value in options.items() if n not in ("task", "tied")}
    path.write_text(json.dumps(before))

    def check(**changed):
        search_directory.check_record(path, options | changed, TrainingOptions)

    check()
    with pytest.raises(ValueError, match=r"tied=False\. Received: tied=True"):
        check(tied=True)
    path.write_text("[]")
    with pytest.raises(ValueError, match="is damaged: expected a JSON object"):
        check()


def test_a_search_from_before_there_were_tasks_goes_on(
    finished, tmp_path, run, no_training
):
    """The record of an earlier version: no task, and fewer options."""
    path = Path(shutil.copytree(finished, tmp_path / "s"))
    state = json.loads((path / "search.json").read_text())
    assert state["backend"] == keras.config.backend()
    for name in ("task", "backend", "checksum", "rho", "random_lengths"):
        del state[name]
    (path / "search.json").write_text(json.dumps(state))
    before = trials(path)
    assert run(save_path=path, **TINY, max_trials=4)[0] == 0
    assert trials(path)[:3] == before


def test_another_backend_is_refused(finished, tmp_path, run, no_training, monkeypatch):
    path = Path(shutil.copytree(finished, tmp_path / "s"))
    monkeypatch.setattr(search.keras.config, "backend", lambda: "other")
    code, _, error = run(save_path=path, **TINY, max_trials=3)
    assert code == 2 and "Received: backend='other'" in error


@pytest.mark.parametrize("task", ["sentiment", "translation"])
def test_the_directory_of_another_task_is_refused(
    finished, tmp_path, run, no_training, task
):
    path = Path(shutil.copytree(finished, tmp_path / "s"))
    code, _, error = run(save_path=path, task=task, max_trials=3)
    assert code == 2 and error.count("\n") == 1
    assert "with task='lm'" in error and f"Received: task='{task}'" in error
    assert "another --save_path" in error
    # And the other way round.
    other = tmp_path / "other"
    assert run(save_path=other, task=task, units="4-8", max_trials=1)[0] == 0
    code, _, error = run(save_path=other, **TINY, max_trials=3)
    assert f"with task='{task}'" in error and "Received: task='lm'" in error
    assert code == 2
