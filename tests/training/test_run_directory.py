"""Run directories: two processes at once, damaged files, interrupted writes."""

import contextlib
import errno
import json
import os
import runpy
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest

from keras_qrnn._files import atomic_write, reading
from keras_qrnn.data import Vocabulary
from keras_qrnn.training import (
    TrainingOptions,
    experiment,
    load_sentiment,
    load_trained,
    load_translation,
)
from keras_qrnn.training.checkpoint import FORMAT, read_meta
from keras_qrnn.training.language_model import build_language_model, count_weights
from keras_qrnn.training.objective import Objective
from keras_qrnn.training.options import RunOptions
from keras_qrnn.training.plots import Panel, plot_gates, plot_history
from keras_qrnn.training.run_directory import (
    RunDirectory,
    check_directory,
    difference_between,
    held,
    refuse_if_held,
)
from tests.training.tasks import TASKS


def same(meta):
    return None


def other(meta):
    return "units=8. Received: units=9"


def write_checkpoint(path, **meta):
    header = {"format": FORMAT, "epoch": 1, "step": 0, "history": [], **meta}
    np.savez(path, header=np.array(json.dumps(header)), w=np.zeros(9))


# The lock


HOLD = (
    "import fcntl, sys; file = open(sys.argv[1], 'a'); "
    "fcntl.flock(file, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()"
)


def test_one_process_at_a_time(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, path / ".lock"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"held\n"
    message = r"`save_path`: .* is being trained in by another process"
    with pytest.raises(BlockingIOError, match=message):
        refuse_if_held(path, "trained in")
    with pytest.raises(BlockingIOError, match=message), held(path, "trained in"):
        pass
    process.kill()  # the lock ends with it
    process.communicate()
    (path / ".log.csv.unfinished-x.csv").write_text("half")
    with held(path, "trained in"):
        assert [file.name for file in path.iterdir()] == [".lock"]
    refuse_if_held(tmp_path / "elsewhere", "trained in")
    assert not (tmp_path / "elsewhere").exists()


# What a directory holds


def test_a_new_run_begins(tmp_path):
    assert not RunDirectory(tmp_path / "run").check(same, resume=False)
    assert not RunDirectory(tmp_path / "run").check(same, resume=True)
    # One that ended before its first checkpoint is none, whatever its options.
    write_checkpoint(tmp_path / "checkpoint.npz", epoch=0)
    for resume in (False, True):
        assert not RunDirectory(tmp_path).check(other, resume)


def test_a_run_goes_on_or_is_left_alone(tmp_path):
    run = RunDirectory(tmp_path)
    write_checkpoint(run.checkpoint)
    assert run.check(same, resume=True)
    with pytest.raises(FileExistsError, match=r"holds a run already. Use --resume"):
        run.check(same, resume=False)
    # --resume alone would fail.
    advice = r"It has units=8\. .* Use another --save_path, or --resume with what"
    with pytest.raises(FileExistsError, match=advice):
        run.check(other, resume=False)
    with pytest.raises(ValueError, match=r"`resume`: the run in .* has units=8"):
        run.check(other, resume=True)


@pytest.mark.parametrize("resume", [False, True])
def test_a_model_without_a_checkpoint_is_left_alone(tmp_path, resume):
    (tmp_path / "model.keras").write_bytes(b"years of work")
    with pytest.raises(FileExistsError, match="holds a model and no checkpoint"):
        RunDirectory(tmp_path).check(same, resume)


@pytest.mark.parametrize(
    "name", ["log.csv", "run.json", "vocabulary.json", "model.epoch3.keras"]
)
def test_files_that_no_run_wrote_are_left_alone(tmp_path, name):
    (tmp_path / name).write_bytes(b"of another program")
    with pytest.raises(FileExistsError, match=f"holds {name}, which no training"):
        RunDirectory(tmp_path).check(same, resume=False)
    # A run that was killed before its first checkpoint has left its lock.
    (tmp_path / ".lock").touch()
    assert not RunDirectory(tmp_path).check(same, resume=False)


def test_killed_between_the_first_model_and_its_checkpoint(tmp_path):
    (tmp_path / "model.keras").write_bytes(b"of the first epoch")
    write_checkpoint(tmp_path / "checkpoint.npz", epoch=0)
    assert RunDirectory(tmp_path).check(same, resume=True)
    with pytest.raises(FileExistsError, match="holds a run already"):
        RunDirectory(tmp_path).check(same, resume=False)


def test_the_model_is_of_the_checkpoints_epochs(tmp_path):
    """The process is killed between a better model and its epoch's checkpoint."""
    run = RunDirectory(tmp_path)
    for epoch in (2, 9, 11):
        run.newer_model(epoch).write_bytes(b"%d" % epoch)
    write_checkpoint(run.checkpoint, epoch=0)
    assert run.check(same, resume=True)  # there is something to lose
    run.settle(10)
    assert run.model.read_bytes() == b"9"
    run.settle(11)  # epoch 11 has been trained again, and was not the best
    assert run.model.read_bytes() == b"9"
    assert {file.name for file in tmp_path.iterdir()} == {
        "model.keras", "checkpoint.npz"
    }  # fmt: skip


@pytest.mark.one_backend
@pytest.mark.parametrize("there_is_one", [False, True])
def test_a_start_is_decided_when_the_directory_is_held(
    tmp_path, monkeypatch, there_is_one
):
    """Another process ends or begins a run there while this one prepares."""

    class Task(experiment.Experiment):
        started = False
        summary = ""
        save = validation = kept = lambda self, _: None

        def data(self):
            return {"data": ""}

        def prepare(self, goes_on):
            self.prepared = goes_on

        def batches(self):
            return [None]

        def model(self, steps_per_epoch=None):
            self.started = False
            return keras.Sequential([])

        def start(self, model):
            self.started = True
            return model

        def difference(self, meta, expected):
            return None

    @contextlib.contextmanager
    def held(path, doing):
        if there_is_one:
            (path / "checkpoint.npz").unlink()
        else:
            write_checkpoint(path / "checkpoint.npz")
        yield

    if there_is_one:
        write_checkpoint(tmp_path / "checkpoint.npz")
    task, goes_on = Task(RunOptions()), []
    task.objective = None
    monkeypatch.setattr(experiment, "held", held)
    monkeypatch.setattr(
        experiment, "train", lambda *_, **more: goes_on.append(more["goes_on"])
    )
    monkeypatch.setattr(experiment, "BatchesOfTheEpoch", lambda batches: None)
    experiment.train_experiment(task, tmp_path, resume=True)
    assert goes_on == [not there_is_one]
    assert task.prepared == (not there_is_one) and task.started == there_is_one


def test_no_memory_is_not_a_damaged_file(tmp_path):
    with (
        pytest.raises(MemoryError, match="checkpoint needs more memory than there is"),
        reading(tmp_path / "checkpoint", "a whole checkpoint"),
    ):
        raise MemoryError("Unable to allocate 9 TiB")


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run" / "deep"):
        with pytest.raises(NotADirectoryError, match=r"`save_path` .* is a file"):
            check_directory("save_path", path)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(NotADirectoryError, match=r"`save_path` .* is a broken link"):
        check_directory("save_path", tmp_path / "link" / "run")
    check_directory("save_path", tmp_path / "new" / "run")


@pytest.mark.parametrize("kind", ["directory", "device"])
def test_only_a_file_is_replaced(tmp_path, kind):
    """A rename would put a file in the place of a device such as /dev/null."""
    path = tmp_path / "x"
    if kind == "directory":
        path.mkdir()
    else:
        os.mkfifo(path)  # like a device, it is no file; any user can make one
    before = path.stat().st_mode
    with (
        pytest.raises(FileExistsError, match=f"must be a file. Received: a {kind}"),
        atomic_write(path) as temporary,
    ):
        temporary.write_text("text")
    assert path.stat().st_mode == before and list(tmp_path.iterdir()) == [path]


def test_difference():
    assert difference_between({"a": 1, "b": 2}, {"b": 2, "a": 1}) is None
    assert difference_between({"a": 1, "b": 2}, {"b": 2, "a": 1, "c": 3}, {"c"}) is None
    found, expected = {"a": 1, "b": "x", "gone": 1}, {"b": "y", "a": 3}
    assert difference_between(found, expected) == (
        "b='x', a=1, gone=1. Received: b='y', a=3, gone=None"
    )
    assert difference_between(found, expected, {"b", "gone"}) == "a=1. Received: a=3"
    many = difference_between(dict.fromkeys("abcdefghij", 1), {})
    assert "h=1 (2 more differ). Received: a=None, " in many and "i=" not in many


# A run is loaded by the function of its task


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """For each task a directory with an untrained model and its vocabulary."""
    paths = {}
    for name, task in TASKS.items():
        paths[name] = tmp_path_factory.mktemp(name)
        made = task()
        made.model(1).save(RunDirectory(paths[name]).model)
        made.vocabulary.save(RunDirectory(paths[name]).vocabulary)
    return paths


@pytest.mark.one_backend
@pytest.mark.parametrize("loaded", TASKS)
@pytest.mark.parametrize("saved", TASKS)
def test_runs_of_other_tasks_are_refused(runs, saved, loaded):
    load = {
        "language_model": load_trained, "sentiment": load_sentiment,
        "translation": load_translation,
    }[loaded]  # fmt: skip
    if saved == loaded:
        _, vocabulary = load(runs[saved], "load_path")
        assert len(vocabulary) > 3
        return
    refusal = r"^Option `load_path` must be .*, which holds a \w+Model, not a \w+Model"
    with pytest.raises(ValueError, match=refusal):
        load(runs[saved], "load_path")


@pytest.mark.one_backend
def test_the_vocabulary_of_a_run_is_damaged(runs, tmp_path):
    run = RunDirectory(tmp_path)
    run.model.write_bytes(RunDirectory(runs["sentiment"]).model.read_bytes())
    run.vocabulary.write_text("{")
    refusal = r"^Option `load_path`: \S+/vocabulary\.json is not a vocabulary"
    with pytest.raises(ValueError, match=refusal):
        load_sentiment(tmp_path, "load_path")


# The metric and its direction


@pytest.mark.parametrize(("direction", "sign"), [("min", 1), ("max", -1)])
def test_objective(direction, sign):
    objective = Objective("val_x", direction)

    def rows(*values):
        return [{"val_x": sign * value} for value in values]

    assert objective.best([]) is None and not objective.is_over([], 1)
    assert objective.best(rows(3, 1, 1, 2)) == 1
    assert objective.best(rows(float("nan"), 5)) == 1
    assert not objective.is_over(rows(3, 1, 2), 2)
    assert objective.is_over(rows(3, 1, 2, 2), 2)
    assert not objective.is_over(rows(3, 1, 2, 2), 0)
    for end in ("nan", "inf", "-inf"):
        assert objective.is_over(rows(3, 1, float(end)), 0)


def test_bad_direction():
    with pytest.raises(ValueError, match=r"`direction` must be one of 'min', 'max'"):
        Objective("val_x", "up")


# Files


def test_a_full_disk_names_the_file(tmp_path):
    with (
        pytest.raises(OSError, match=r"No space left on device: .*model.keras") as info,
        atomic_write(tmp_path / "model.keras"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert info.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "header", ["5", "null", "[]", "{}", '"x"', "[" * 100_000, "{", ""]
)
def test_foreign_headers(tmp_path, header):
    path = tmp_path / "checkpoint.npz"
    np.savez(path, header=np.array(header), w=np.zeros(9))
    with pytest.raises(ValueError, match="is not a whole checkpoint"):
        read_meta(path)


def test_every_bit_of_a_zip_directory(tmp_path):
    """A flipped bit changes nothing that is read, or raises the one error."""
    path = tmp_path / "checkpoint.npz"
    write_checkpoint(path)
    whole, expected = path.read_bytes(), read_meta(path)
    with zipfile.ZipFile(path) as archive:
        start = archive.start_dir
    refused = 0
    for at in range(start, len(whole), 3):
        content = bytearray(whole)
        content[at] ^= 1 << at % 8
        path.write_bytes(content)
        try:
            assert read_meta(path) == expected
        except ValueError as error:
            assert "is not a whole checkpoint" in str(error)
            refused += 1
    assert refused > 10


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    """The model and vocabulary of a run. The model is not trained."""
    directory = tmp_path_factory.mktemp("model")
    vocabulary = Vocabulary.build(["a b c", "b c", "c"])
    vocabulary.save(directory / "vocabulary.json")
    options = TrainingOptions(units=3, emb_dim=4, batch_size=2)
    model = build_language_model(
        options, len(vocabulary), vocabulary=vocabulary.fingerprint
    )
    model.save(directory / "model.keras")
    return directory


def copied(model_file, directory):
    for name in ("model.keras", "vocabulary.json"):
        (directory / name).write_bytes((model_file / name).read_bytes())
    return directory / "model.keras", directory / "vocabulary.json"


def test_vocabulary_in_another_order(model_file, tmp_path):
    _, words = copied(model_file, tmp_path)
    model, vocabulary = load_trained(tmp_path, "load_path")
    assert model.with_batch_size(1).get_config()["vocabulary"] == vocabulary.fingerprint
    for changed in (vocabulary.words[::-1], [*vocabulary.words[:-1], "z"]):
        Vocabulary(changed).save(words)
        with pytest.raises(ValueError, match=r"`load_path`: .* does not fit the model"):
            load_trained(tmp_path, "load_path")
    message = r"^Argument `directory`: .* does not fit the model"
    with pytest.raises(ValueError, match=message):
        load_trained(str(tmp_path))


@pytest.mark.parametrize("damage", ["directory", "config", "foreign", "empty", "text"])
def test_damaged_models(model_file, tmp_path, damage):
    path, _ = copied(model_file, tmp_path)
    content = bytearray(path.read_bytes())
    if damage == "directory":
        content[content.rindex(b"PK\x01\x02") + 10] ^= 64  # the compression method
    elif damage == "config":
        at = content.index(b"LanguageModel")
        content[at] ^= 1
    elif damage == "empty":
        content = b""
    elif damage == "text":
        content = b"[" * 1000
    path.write_bytes(content)
    if damage == "foreign":
        keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save(path)
    refusal = r"`finetune`: .*model.keras is not a whole language model"
    if damage == "foreign":
        refusal = r"`finetune` must be .*, which holds a Sequential, not a LanguageM"
    with pytest.raises(ValueError, match=refusal):
        load_trained(tmp_path, "finetune")


# Pictures


@pytest.mark.parametrize("word", ["$", "$5", "$$", "$x^$", r"$\foo$", "US$5-$10", "_^"])
def test_words_that_matplotlib_reads_as_mathematics(tmp_path, word):
    gates = {"qrnn": {"f": np.zeros((2, 4))}}
    plot_gates(tmp_path / "gates.png", gates, ["the", word])
    assert (tmp_path / "gates.png").read_bytes().startswith(b"\x89PNG")


def test_curves_of_another_metric(tmp_path):
    history = [{"epoch": n, "acc": n / 4, "learning_rate": 1.0} for n in (1, 2, 3)]
    panels = [Panel("accuracy", {"training": lambda row: row["acc"]})]
    plot_history(tmp_path / "training.png", history, panels)
    assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")


# Sizes


@pytest.mark.parametrize("cell", ["qrnn", "lstm"])
@pytest.mark.parametrize("layers", [1, 2, 4])
@pytest.mark.parametrize("tied", [False, True])
def test_weights_are_counted_without_building(cell, layers, tied):
    options = TrainingOptions(
        cell=cell, layers=layers, tied=tied, units=5, emb_dim=4, window=2,
        first_window=3, batch_size=2, pooling="ifo", kernel_dropout=0.0,
    )  # fmt: skip
    model = build_language_model(options, 11)
    expected = sum(int(np.prod(weight.shape)) for weight in model.trainable_variables)
    assert count_weights(options, 11) == expected


def test_only_a_lock_needs_a_module_that_windows_lacks(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    held = runpy.run_path(check_directory.__code__.co_filename)["held"]
    with pytest.raises(ImportError, match="fcntl"), held(tmp_path, "trained in"):
        pass
