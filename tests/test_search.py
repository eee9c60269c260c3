"""The hyperparameter search, run as a user runs it; also with real workers."""

import csv
import importlib
import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import keras
import pytest
from keras_tuner.engine.trial import TrialStatus

import search
import search_tuner
import search_workers
from keras_qrnn.data import Vocabulary, load_corpus
from keras_qrnn.training import TrainingOptions, evaluate_perplexity
from search_space import canonical, grid, parse
from search_workers import role, run_workers
from tests.examples.test_train_lm import arguments, train_lm

pytestmark = pytest.mark.skipif(
    keras.config.backend() == "numpy", reason="the NumPy backend does not train"
)
SCRIPT = Path(search.__file__)
# A space of tiny models.
SPACE = {
    "units": "4-8", "window": "1-2", "zoneout": "0.0-0.3", "layers": 1, "dropout": 0.1,
    "emb_dim": "4,6", "pooling": "fo,ifo", "learning_rate": "0.2-0.8",
}  # fmt: skip
TINY = {**SPACE, "seq_len": 30, "batch_size": 8, "save_every": 50, "epochs": 2}


@pytest.fixture(scope="module")
def searched(small_ptb, tmp_path_factory):
    """A search of three trials, and what it printed."""
    path = tmp_path_factory.mktemp("search") / "whole"
    process = subprocess.run(
        command(data_dir=small_ptb, save_path=path, **TINY, max_trials=3),
        env=environment(), capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-2000:]
    return path, process.stdout


def environment(**more):
    variables = {k: v for k, v in os.environ.items() if "KERASTUNER" not in k}
    variables["PYTHONPATH"] = str(SCRIPT.parents[1])
    return variables | {"PYTHONUNBUFFERED": "1"} | more


def command(**options):
    return [sys.executable, str(SCRIPT), *arguments(**options)]


def start(*more, **options):
    return subprocess.Popen(
        [*command(**options), *more], env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        # Where the tests run in the background of a script, SIGINT is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


def read_until(process, *words):
    """Reads lines up to one with all `words` in it; gives them."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if all(word in line for word in words):
            return lines
    pytest.fail(f"ended before {words}:\n{''.join(lines)}")


def trials(path):
    with (path / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def without_seconds(rows):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


# The space


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("units", "256", [256]),
        ("units", "256,640", [256, 640]),
        ("window", "1-4", (1, 4)),
        ("window", "2-2", [2]),
        ("zoneout", "0.0-0.5", (0.0, 0.5)),
        ("zoneout", "0", [0.0]),
        ("learning_rate", "1e-2-1e+1", (0.01, 10.0)),
        ("pooling", "fo, ifo", ["fo", "ifo"]),
    ],
)
def test_parse(name, text, expected):
    found = parse(name, text)
    assert found == expected
    assert parse(name, canonical({name: found})[name]) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": "4-1"}, "Option `window`: the range is empty"),
        ({"window": "0-2"}, "`window` must be an integer of at least 1"),
        ({"units": ""}, "`units` must be an integer of at least 1"),
        ({"units": "8,"}, "`units` must be an integer of at least 1"),
        ({"units": "8,8"}, "`units` must name each value once"),
        ({"units": "8.5"}, "`units` must be an integer of at least 1"),
        ({"zoneout": "0.0-1.0"}, "`zoneout` must be a number in [0, 1)"),
        ({"dropout": "-0.5"}, "`dropout` must be a number in [0, 1)"),
        ({"dropout": "nan"}, "`dropout` must be a number in [0, 1)"),
        ({"learning_rate": "0-1"}, "`learning_rate` must be a positive number"),
        ({"pooling": "f-ifo"}, "`pooling` must be one of f, fo, ifo"),
        ({"max_trials": 0}, "`max_trials` must be a positive integer"),
        ({"epochs": -1}, "`epochs` must be a positive integer"),
        ({"executions_per_trial": 0}, "`executions_per_trial` must be a positive"),
        ({"max_tokens": 0}, "`max_tokens` must be a positive integer"),
        ({"max_tokens": 3, "batch_size": 30}, "must have at least batch_size + 1"),
        ({"workers": -1}, "`workers` must not be negative"),
        ({"early_stopping": -1}, "`early_stopping` must be 0 or a positive integer"),
        ({"grad_clip": 0}, "`grad_clip` must be positive"),
        ({"data_dir": "nowhere"}, "`data_dir` must be a directory"),
    ],
)
def test_bad_options(small_ptb, tmp_path, capsys, options, message):
    path = tmp_path / "search"
    options = {"data_dir": small_ptb, "save_path": path, **TINY, **options}
    options = [f"--{name}={value}" for name, value in options.items()]
    assert search.main(options) == 2
    error = capsys.readouterr().err
    assert error.startswith("search.py: error: ") and message in error
    assert not path.exists()


def test_grid_of_a_range_has_both_its_ends():
    values = grid(
        {"units": (4, 8), "zoneout": (0.0, 0.3), "learning_rate": (0.1, 10.0)}
    )
    assert values["units"] == [4, 5, 6, 7, 8]
    assert values["zoneout"] == [0.0, 0.075, 0.15, 0.225, 0.3]
    assert values["learning_rate"] == [0.1, 0.316228, 1.0, 3.16228, 10.0]


def test_missing_keras_tuner_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_tuner", None)
    spec = importlib.util.spec_from_file_location("search_without", SCRIPT)
    with pytest.raises(
        SystemExit, match=r"pip install '\.\[tuning\]' in .* keras-qrnn"
    ):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


# What a search is and leaves


def test_results(searched, small_ptb):
    path, printed = searched
    rows = trials(path)
    assert [row["trial"] for row in rows] == ["0", "1", "2"]
    assert {row["status"] for row in rows} == {"COMPLETED"}
    for name, values in SPACE.items():
        space = parse(name, str(values))
        for row in rows:
            value = type(space[0])(row[name])
            if isinstance(space, tuple):
                assert space[0] <= value <= space[1]
            else:
                assert value in space
    best = min(rows, key=lambda row: float(row["val_perplexity"]))
    names = {"trials.csv", "best.json", "best_model.keras", "vocabulary.json"}
    names |= {"objective.png", "hyperparameters.png", "parallel.png", "search.json"}
    names |= {"oracle.json", ".lock", "trial_0", "trial_1", "trial_2"}
    assert {file.name for file in path.iterdir()} == names
    for file in path.glob("*.png"):
        assert file.read_bytes().startswith(b"\x89PNG")
    table = printed.partition("The best:")[2].split("\n\n")[1].splitlines()
    assert len(table) == 4 and table[1].split()[0] == best["trial"]

    config = json.loads((path / "best.json").read_text())
    assert config["units"] == int(best["units"])
    assert config["zoneout"] == float(best["zoneout"])
    assert config["seq_len"] == TINY["seq_len"]
    assert "epochs" not in config  # the search's are for the search
    model = keras.saving.load_model(path / "best_model.keras")
    assert model.get_config()["units"] == int(best["units"])
    assert model.get_config()["pooling"] == best["pooling"]
    # The objective is the perplexity over every token of the validation split.
    vocabulary = Vocabulary.load(path / "vocabulary.json")
    ids = vocabulary.encode(load_corpus(data_dir=small_ptb).valid)
    perplexity = evaluate_perplexity(model, ids)
    assert abs(perplexity / float(best["val_perplexity"]) - 1) < 1e-4


def test_one_model_a_trial_is_kept(searched):
    path, _ = searched
    for trial in path.glob("trial_*"):
        assert [file.parent for file in trial.rglob("*.keras")] == [trial]
        assert not list(trial.rglob("*.npz"))


def test_best_config_feeds_train_lm(searched, small_ptb, tmp_path):
    path, _ = searched
    data = arguments(
        data_dir=small_ptb, save_path=tmp_path / "run", config=path / "best.json"
    )
    assert train_lm.options_from(train_lm.parser().parse_args(data)).epochs == 72
    assert train_lm.main([*data, "--epoch", "1", "--notest"]) == 0
    model = keras.saving.load_model(tmp_path / "run" / "model.keras")
    best = keras.saving.load_model(path / "best_model.keras")
    assert model.get_config() == best.get_config()


def events(directory):
    """The events of a directory's event files, which are TFRecord files."""
    from tensorboardX.proto.event_pb2 import Event

    for file in sorted(directory.glob("events.out.tfevents.*")):
        data, at = file.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            yield Event.FromString(data[at + 12 : at + 12 + length])
            at += 12 + length + 4


def test_event_files_for_the_hparams_view(searched):
    """What TensorBoard reads: the session's start, its values, its metric, its end."""
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    path, _ = searched
    for row in trials(path):
        contents, scalars = {}, {}
        for event in events(path / f"trial_{row['trial']}" / "hparams"):
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "hparams":
                    data = value.metadata.plugin_data.content
                    contents[value.tag] = HParamsPluginData.FromString(data)
                else:
                    scalars[value.tag] = value.simple_value
        started = contents["_hparams_/session_start_info"].session_start_info.hparams
        assert started["units"].number_value == int(row["units"])
        assert started["pooling"].string_value == row["pooling"]
        assert set(started) == set(SPACE)
        experiment = contents["_hparams_/experiment"].experiment
        assert {info.name for info in experiment.hparam_infos} == set(SPACE)
        (metric,) = (info.name.tag for info in experiment.metric_infos)
        assert scalars[metric] == pytest.approx(float(row["val_perplexity"]), rel=1e-6)
        assert contents["_hparams_/session_end_info"].session_end_info.status
        assert list(events(path / f"trial_{row['trial']}" / "execution_0" / "logs"))


def test_max_tokens_keeps_the_vocabulary(small_ptb):
    data = arguments(data_dir=small_ptb, **(TINY | {"max_tokens": 100}))
    corpus, vocabulary = search.load_data(search.parser().parse_args(data))
    whole = load_corpus(data_dir=small_ptb)
    assert vocabulary.words == Vocabulary.build(whole.train).words
    assert corpus.train == whole.train[: len(corpus.train)]
    assert 100 <= len(vocabulary.encode(corpus.train)) < 130
    assert corpus.valid == whole.valid


# Killed and started again


def test_killed_search_ends_with_the_same_trials(searched, small_ptb, tmp_path):
    """SIGKILL in the middle of the second trial."""
    options = {"data_dir": small_ptb, "save_path": tmp_path / "s", **TINY}
    process = start(**options, max_trials=2)
    read_until(process, "Trial 1, epoch 1/2")
    process.kill()
    process.communicate()
    first = (tmp_path / "s" / "trial_0" / "trial.json").read_bytes()
    process = start(**options, max_trials=2)
    lines, _ = process.communicate(timeout=300)
    assert process.returncode == 0, lines
    assert "Trial 0 of" not in lines and "Trial 1 of 2 runs again" in lines
    assert (tmp_path / "s" / "trial_0" / "trial.json").read_bytes() == first
    a, b = (
        without_seconds(trials(tmp_path / "s")),
        without_seconds(trials(searched[0])[:2]),
    )
    for row, expected in zip(a, b, strict=True):
        perplexities = [float(r.pop("val_perplexity")) for r in (row, expected)]
        assert abs(perplexities[0] / perplexities[1] - 1) < 1e-4
        assert row == expected


def test_going_on_refusal_and_overwriting(searched, small_ptb, capsys):
    path, _ = searched
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
    with search.held(path):
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


def test_a_directory_of_other_files_is_left_alone(small_ptb, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("years of work")
    options = arguments(data_dir=small_ptb, save_path=tmp_path, **TINY)
    assert search.main([*options, "--overwrite"]) == 2
    assert "holds other files than a search's" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


class Killed(BaseException):
    """In place of SIGKILL."""


def fake_training(corpus, vocabulary, options, directory, **kwargs):
    """A history that depends on the options alone."""
    value = 10 + options.units + options.window / 10 + options.zoneout
    return [
        {"epoch": n + 1, "val_perplexity": value / (n + 1), "seconds": 1.0}
        for n in range(options.epochs)
    ]


@pytest.fixture
def no_training(monkeypatch):
    """Trials take no time."""
    monkeypatch.setattr(search_tuner, "train_language_model", fake_training)
    monkeypatch.setattr(search_tuner.gc, "collect", lambda: None)
    monkeypatch.setattr(search_tuner, "write_session", lambda *args: None)


def make_tuner(path, tuner, max_trials, space=None):
    space = {n: parse(n, str(t)) for n, t in (SPACE | (space or {})).items()}
    options = TrainingOptions(epochs=3)
    oracle = search_tuner.make_oracle(tuner, space, max_trials, 3, 0)
    return search_tuner.LanguageModelTuner(oracle, path, None, None, options, 1)


@pytest.mark.parametrize("tuner", search_tuner.TUNERS)
def test_no_trial_is_lost_or_repeated_wherever_it_is_killed(
    tuner, tmp_path, monkeypatch, no_training
):
    """The search is killed at its first write, then at its second, and so on."""
    count_of_trials = 4 if tuner == "bayesian" else 5  # its model takes its time
    write = search_tuner.write_json
    left = None

    def write_or_die(path, value):
        nonlocal left
        left -= 1
        if left < 0:
            # Before it is written; the next count dies after it.
            raise Killed
        write(path, value)

    monkeypatch.setattr(search_tuner, "write_json", write_or_die)

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


def test_torn_state_is_an_error(tmp_path, no_training):
    make_tuner(tmp_path / "s", "random", 2).search()
    file = tmp_path / "s" / "oracle.json"
    file.write_text(file.read_text()[:100])
    with pytest.raises(ValueError, match=r"not a whole search.*--overwrite"):
        make_tuner(tmp_path / "s", "random", 2)


# The tuners


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


def test_hyperband_trains_the_best_further(small_ptb, tmp_path):
    """Of three trials of one epoch the best goes on, from where it was, to three."""
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


def test_tidy_of_a_trial_that_failed_before_its_first_epoch(tmp_path):
    """Of Hyperband's, which has the model of the trial that it goes on from."""
    execution = tmp_path / "execution_0"
    execution.mkdir()
    for name in ("model.keras", "checkpoint.npz"):
        (execution / name).write_bytes(b"copied")
    search_tuner.write_error(tmp_path, "MemoryError")
    search_tuner.tidy(tmp_path)
    assert not list(execution.iterdir())


def test_record_from_before_an_option_was_added(tmp_path):
    path = tmp_path / "search.json"
    options = vars(TrainingOptions(tied=False))
    before = {name: value for name, value in options.items() if name != "tied"}
    path.write_text(json.dumps(before))
    search.check_record(path, options)
    with pytest.raises(ValueError, match=r"tied=False\. Received: tied=True"):
        search.check_record(path, options | {"tied": True})
    path.write_text("[]")
    with pytest.raises(ValueError, match="is not a search's record"):
        search.check_record(path, options)


def test_mean_of_executions_with_different_seeds(small_ptb, tmp_path):
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


# What goes wrong


def test_diverged_trials_fail_and_the_search_goes_on(small_ptb, tmp_path, capsys):
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


def test_many_diverged_trials(tmp_path, monkeypatch):
    def diverges(corpus, vocabulary, options, directory, **kwargs):
        history = fake_training(corpus, vocabulary, options, directory)
        history[-1]["val_perplexity"] = float("nan" if options.units % 2 else "inf")
        return history

    monkeypatch.setattr(search_tuner, "train_language_model", diverges)
    searched = make_tuner(tmp_path / "s", "random", 8)
    searched.search()
    assert searched.oracle.failure is None
    statuses = [trial.status for trial in searched.oracle.trials.values()]
    assert statuses == [TrialStatus.FAILED] * 8


def test_none_that_completed_is_an_error(small_ptb, tmp_path, capsys):
    options = {**TINY, "learning_rate": 1e30, "max_trials": 1}
    path = tmp_path / "s"
    assert search.main(arguments(data_dir=small_ptb, save_path=path, **options)) == 2
    assert "None of 1 trials came to an end" in capsys.readouterr().err
    assert trials(path)[0]["status"] == "FAILED"


def test_errors_in_a_row_stop_the_search(small_ptb, tmp_path, monkeypatch, capsys):
    def breaks(*args, **kwargs):
        raise ValueError("a bug")

    monkeypatch.setattr(search_tuner, "train_language_model", breaks)
    options = arguments(data_dir=small_ptb, save_path=tmp_path / "s", **TINY)
    assert search.main(options) == 2
    error = capsys.readouterr().err
    assert "3 trials in a row broke, the last with: ValueError: a bug" in error
    assert len(list((tmp_path / "s").glob("trial_*/error.txt"))) == 3
    assert "breaks" in (tmp_path / "s" / "trial_00" / "error.txt").read_text()


def test_a_full_disk_stops_the_search_and_no_trial_is_blamed(
    small_ptb, tmp_path, monkeypatch, capsys
):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    options = {"data_dir": small_ptb, "save_path": tmp_path / "s", **TINY}
    options["max_trials"] = 1
    with monkeypatch.context() as patch:
        patch.setattr(search_tuner, "train_language_model", full)
        assert search.main(arguments(**options)) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert search.main(arguments(**options)) == 0
    assert "Trial 0 of 1 runs again" in capsys.readouterr().out


def test_early_stopping(small_ptb, tmp_path):
    """A rate of zero improves nothing, the second epoch not over the first."""
    options = {**TINY, "learning_rate": 1e-30, "max_trials": 1, "epochs": 9}
    options["early_stopping"] = 2
    path = tmp_path / "s"
    assert search.main(arguments(data_dir=small_ptb, save_path=path, **options)) == 0
    (row,) = trials(path)
    assert (row["epochs"], row["best_epoch"]) == ("3", "1")


# Many workers


def test_keras_tuner_variables(monkeypatch):
    for name in ("TUNER_ID", "ORACLE_IP", "ORACLE_PORT"):
        monkeypatch.delenv(f"KERASTUNER_{name}", raising=False)
    assert role() == "single"
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "chief")
    with pytest.raises(
        ValueError, match="no KERASTUNER_ORACLE_IP, KERASTUNER_ORACLE_P"
    ):
        role()
    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.1")
    monkeypatch.setenv("KERASTUNER_ORACLE_PORT", "8000")
    assert role() == "chief"
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "worker7")
    assert role() == "worker"


def process_of(line):
    return int(line.rsplit(" ", 1)[1])


def gone(pid):
    """Whether a process ends within seconds; one of nobody's is a zombie at most."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


def test_workers_and_one_is_killed(small_ptb, tmp_path):
    path = tmp_path / "s"
    options = {**TINY, "epochs": 8, "max_trials": 3, "workers": 2}
    process = start(data_dir=small_ptb, save_path=path, **options)
    lines = read_until(process, "worker", "epoch 1/8")
    tuner_id = lines[-1].partition(":")[0]
    trial = lines[-1].partition("Trial ")[2][0]
    (pid,) = (process_of(li) for li in lines if li.startswith(f"{tuner_id} starts"))
    os.kill(pid, signal.SIGKILL)
    rest, _ = process.communicate(timeout=300)
    assert process.returncode == 0, rest
    assert f"{tuner_id} ended with SIGKILL" in rest
    assert f"Trial {trial} of 3 runs again" in rest
    rows = trials(path)
    assert [row["status"] for row in rows] == ["COMPLETED"] * 3
    assert [row["epochs"] for row in rows] == ["8"] * 3
    assert "The best:" in rest
    pids = [process_of(li) for li in lines + rest.splitlines() if " starts, proc" in li]
    assert len(pids) == 3 and all(map(gone, pids))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_the_search(small_ptb, tmp_path, number):
    path = tmp_path / "s"
    options = {**TINY, "epochs": 500, "workers": 1}
    process = start(data_dir=small_ptb, save_path=path, **options)
    lines = read_until(process, "worker0: ", "epoch 1/500")
    process.send_signal(number)
    rest, _ = process.communicate(timeout=60)
    if number == signal.SIGKILL:
        assert process.returncode == -number
    else:
        assert process.returncode == 130
        assert "Interrupted; trials that have ended: 0" in rest
    (pid,) = (process_of(line) for line in lines if " starts, process" in line)
    assert gone(pid)
    with search.held(path):
        state = json.loads((path / "oracle.json").read_text())
    assert list(state["ongoing_trials"].values()) == ["00"]


def test_a_trial_that_kills_its_workers_fails(tmp_path, monkeypatch):
    """Without training: a worker that asks for a trial and dies of it."""
    monkeypatch.setattr(search_workers, "MAX_RUNS", 2)

    code = """
import os, sys, keras_tuner
from keras_tuner.src.distribute.oracle_client import OracleClient
oracle = OracleClient(keras_tuner.oracles.RandomSearchOracle(max_trials=2))
trial = oracle.create_trial(oracle.tuner_id)
while trial.status == "RUNNING":
    if trial.trial_id == "0":
        os.kill(os.getpid(), 9)
    oracle.update_trial(trial.trial_id, {"val_perplexity": 5.0})
    trial.status = "COMPLETED"
    oracle.end_trial(trial)
    trial = oracle.create_trial(oracle.tuner_id)
"""
    (tmp_path / "s").mkdir()
    tuner = make_tuner(tmp_path / "s", "random", 2)
    run_workers(tuner.oracle, 1, [sys.executable, "-c", code], tmp_path / "s")
    assert [t.status for t in tuner.oracle.trials.values()] == ["FAILED", "COMPLETED"]
    error = (tmp_path / "s" / "trial_0" / "error.txt").read_text()
    assert "killed 2 times" in error and "SIGKILL" in error


def test_workers_that_cannot_start_stop_the_search(tmp_path):
    (tmp_path / "s").mkdir()
    for code, message in (
        (
            "import sys; sys.exit('no such luck')",
            "3 times without a trial.*no such luck",
        ),
        ("import sys; print('refused', file=sys.stderr); sys.exit(2)", "refused"),
    ):
        tuner = make_tuner(tmp_path / "s", "random", 2)
        with pytest.raises(RuntimeError, match=message):
            run_workers(tuner.oracle, 1, [sys.executable, "-c", code], tmp_path / "s")


def test_chief_and_worker_by_keras_tuner_variables(
    small_ptb, tmp_path, monkeypatch, capsys
):
    import socket

    path = tmp_path / "s"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    options = {"data_dir": small_ptb, "save_path": path, **TINY, "max_trials": 2}
    variables = {"KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": port}
    chief = subprocess.Popen(
        command(**options), env=environment(**variables, KERASTUNER_TUNER_ID="chief"),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        for name, value in (variables | {"KERASTUNER_TUNER_ID": "worker0"}).items():
            monkeypatch.setenv(name, value)
        assert search.main([*arguments(**options), "--overwrite"]) == 2
        assert "`overwrite` is for the chief" in capsys.readouterr().err
        assert search.main(arguments(**(options | {"workers": 2}))) == 2
        assert "`workers` starts a chief of its own" in capsys.readouterr().err
        assert search.main(arguments(**(options | {"units": 5}))) == 2
        assert "units='4-8'. Received: units='5'" in capsys.readouterr().err
        elsewhere = options | {"save_path": tmp_path / "elsewhere"}
        assert search.main(arguments(**elsewhere)) == 2
        assert "All machines must share that directory" in capsys.readouterr().err
        assert search.main(arguments(**options)) == 0
        printed, _ = chief.communicate(timeout=60)
    finally:
        chief.kill()
        chief.wait()
    assert chief.returncode == 0, printed
    assert "The best:" in printed and "Trial 1 ends: val_perplexity" in printed
    assert [row["status"] for row in trials(path)] == ["COMPLETED"] * 2
