"""The search's command line: bad options, silence, the commands that it prints."""

import importlib
import os
import re
import sys
from dataclasses import asdict

import pytest

import search
from keras_qrnn.data import Vocabulary, load_corpus
from keras_qrnn.models import LanguageModel
from search_space import Hyperparameter
from search_task import TASKS
from tests.tuning.searches import SCRIPT, TINY, FakeExperiment, trials

pytestmark = pytest.mark.one_backend  # no search trains here


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": "4-1"}, "Option `window`: the range is empty"),
        ({"window": "0-2"}, "`window` must be a positive integer"),
        ({"units": ""}, "`units` must be an integer"),
        ({"units": "8,"}, "`units` must be an integer"),
        ({"units": "8,8"}, "`units` must name each value once"),
        ({"units": "8.5"}, "`units` must be an integer"),
        ({"zoneout": "0.0-1.0"}, "`zoneout` must be in [0, 1)"),
        ({"dropout": "-0.5"}, "`dropout` must be in [0, 1)"),
        ({"dropout": "nan"}, "`dropout` must be in [0, 1)"),
        ({"learning_rate": "0-1"}, "`learning_rate` must be positive"),
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
        ({"data_dir": ""}, "`data_dir` must be a path"),
        ({"save_path": ""}, "`save_path` must be a path"),
        ({"workers": 10**9}, "`workers` must not be negative or above 256"),
        ({"max_wait": 0}, "`max_wait` must be a positive integer"),
        ({"batch_size": "8,0"}, "`batch_size` must be a positive integer"),
        (
            {"weight_decay": "0-0.1"},
            "logarithmic scale, its lower end must be positive",
        ),
        ({"seed": "1,2"}, "invalid int value"),
        ({"revision": "main"}, "`revision` goes with the data set of the hub"),
        (
            {"tuner": "hyperband", "schedule": "one_cycle"},
            "`schedule` must be decay with tuner hyperband",
        ),
        (
            {"optimizer": "sgd,rmsprop", "average_trigger": "0,5", "learning_rate": 1},
            "`average_trigger` goes with sgd and adamw",
        ),
        (
            {
                "schedule": "one_cycle",
                "cycle_rise": "0.1-0.4",
                "cycle_hold": "0.1-0.4",
                "cycle_anneal": 0.5,
            },
            "must have a sum below 1",
        ),
        ({"rho": "0.5,0.9", "epsilon": "1e-8,1e-7"}, "Options `rho`, `epsilon` must"),
        ({"optimizer": "adamw,sgd", "rho": "0.5,0.9"}, "with optimizer adamw or sgd"),
        ({"cycle_rise": "0.1-0.4"}, "must have one value each with schedule decay"),
        (
            {"schedule": "one_cycle", "constant_epochs": "1,2"},
            "must have one value each with schedule one_cycle",
        ),
        (
            {"schedule": "one_cycle", "optimizer": "sgd", "cycle_beta_1": "0.8,0.9"},
            "`cycle_beta_1` must have one value each with optimizer sgd",
        ),
        ({"cell": "qrnn,lstm"}, "`cell` must be one of"),
        ({"cell": "lstm"}, "`window`, `pooling`, `zoneout` must have one value each"),
        ({"finetune": "x"}, "`units`, `window`, `emb_dim`, `pooling` must have one"),
        ({"task": "speech"}, "invalid choice: 'speech'"),
        ({"task": "sentiment"}, "task sentiment has no option --seq_len=30"),
        ({"task": "translation"}, "task translation has no option --seq_len=30"),
    ],
)
def test_bad_options(small_ptb, tmp_path, capsys, options, message):
    path = tmp_path / "search"
    options = {"data_dir": small_ptb, "save_path": path, **TINY, **options}
    options = [f"--{name}={value}" for name, value in options.items()]
    try:
        code = search.main(options)
    except SystemExit as exit:  # of the parser
        code = exit.code
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 1
    assert error.startswith("search.py: error: ") and message in error
    assert not path.exists()


def test_a_hyperparameter_is_an_option_of_its_task():
    with pytest.raises(ValueError, match="`seq_len` must be an option of Sentiment"):
        Hyperparameter(TASKS["sentiment"].options, "seq_len")


@pytest.mark.parametrize("name", TASKS)
def test_recipes(name):
    """The spaces and options of the recipes are those of the task."""
    task = TASKS[name]
    assert {task.data.hub, "sample"} <= task.recipes.keys()
    for dataset, recipe in task.recipes.items():
        given = ["--pretrained", "x"] if dataset == "pretrained" else []
        arguments = search.parser(task).parse_args(given)
        space, values = search.space_from(task, recipe, arguments)
        assert space.keys() == recipe.space.keys() and not values
        options = search.options_from(task, recipe, arguments, values)
        assert options.epochs == recipe.epochs
        kept = {n: v for n, v in recipe.options.items() if n != "epochs"}
        assert kept.items() <= asdict(options).items()
        search.largest(space, options, 1)
        shown = search.parser(task).format_help()
        assert all(f"--{each} " in shown for each in (*space, *task.plain))


def test_any_option_of_a_task_can_be_searched_or_set():
    task = TASKS["sentiment"]
    words = ["--batch_size", "16,32", "--rho", "0.9", "--first_qrnn_k", "4-6"]
    words += ["--nodense", "--window", "3", "--embeddings", "a,b-c"]
    arguments = search.parser(task).parse_args(words)
    recipe = task.recipe("imdb", None)
    space, values = search.space_from(task, recipe, arguments)
    assert str(space["batch_size"]) == "16,32" and str(space["first_window"]) == "4-6"
    assert str(space["window"]) == "3" and values == {"rho": 0.9}
    options = search.options_from(task, recipe, arguments, values)
    assert not options.dense and options.embeddings == "a,b-c"


def test_missing_keras_tuner_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_tuner", None)
    spec = importlib.util.spec_from_file_location("search_without", SCRIPT)
    with pytest.raises(
        SystemExit, match=r"pip install '\.\[tuning\]' in .* keras-qrnn"
    ):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


@pytest.mark.parametrize(
    ("verbose", "trials_shown", "epochs_shown"),
    [(0, False, False), (1, True, False), (2, True, True)],
)
def test_verbose(tmp_path, run, no_training, verbose, trials_shown, epochs_shown):
    options = TINY | {"max_trials": 1, "verbose": verbose}
    code, printed, error = run(save_path=tmp_path / "s", **options)
    assert (code, error) == (0, "")
    assert ("Trial 0 ends" in printed) == ("The best:" in printed) == trials_shown
    assert ("Trial 0, epoch 2/2: perplexity" in printed) == epochs_shown
    assert trials_shown or not printed
    # Errors are printed all the same.
    code, printed, error = run(save_path=tmp_path / "s", **(options | {"units": 4}))
    assert code == 2 and "is another one" in error
    assert trials_shown or not printed


FULL = OSError(28, "No space left on device")
FULL_MESSAGE = r"search.py: error: .*No space left on device: '{}/.+'\n"
INTERRUPTED = r"search.py: interrupted\. (Trials that have ended: \d\. )?Start it .*\n"


@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt()])
def test_a_full_disk_or_an_interrupt_at_any_write(
    tmp_path, monkeypatch, run, no_training, error
):
    """The error is one line and names the file. The next start goes on."""
    options = TINY | {"max_trials": 2}
    sync, left = os.fsync, 0

    def fsync(file):
        nonlocal left
        left -= 1
        if left == 0:
            raise error
        sync(file)

    for count in range(1, 100):
        path = tmp_path / str(count)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fsync)
            left = count
            code, _, message = run(save_path=path, **options)
        if left > 0:
            break  # there are no more writes
        if error is FULL:
            assert code == 2
            assert re.fullmatch(FULL_MESSAGE.format(re.escape(str(path))), message)
        else:
            assert code == 130 and re.fullmatch(INTERRUPTED, message), message
        code, _, message = run(save_path=path, **options)
        assert (code, message) == (0, "")
        assert len(trials(path)) == 2
    assert count > 10


def test_an_interrupt_while_the_data_are_loaded(
    tmp_path, monkeypatch, run, no_training
):
    def interrupted(*args, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(FakeExperiment, "prepare", interrupted)
    code, _, error = run(save_path=tmp_path / "s", **TINY)
    assert code == 130 and re.fullmatch(INTERRUPTED, error)
    assert not (tmp_path / "s").exists()


def test_the_defaults_of_the_recipes():
    def shown(task, name):
        return search.default_of(TASKS[task], name)

    assert shown("sentiment", "units") == "16-48 for sample, 128-320 for imdb"
    assert shown("sentiment", "optimizer") == (
        "adamw for sample, rmsprop for imdb, rmsprop for pretrained"
    )
    assert shown("translation", "length_step") == "28 for sample, 16 for multi30k"
    assert shown("lm", "seq_len") == "105"


def test_what_changes_the_meaning_of_the_objective_has_one_value():
    fixed = {"cell", "seed", "vocab_size", "max_length", "min_count"}
    for task in TASKS.values():
        assert not fixed & {*task.searchable}


def test_sizes_of_another_run_are_refused_before_the_directory_is_made(
    small_ptb, tmp_path, run
):
    words = Vocabulary.build(load_corpus(data_dir=small_ptb).train)
    words.save(tmp_path / "vocabulary.json")
    model = LanguageModel(len(words), 4, 3, vocabulary=words.fingerprint)
    model.build()
    model.save(tmp_path / "model.keras")
    options = TINY | {"units": 4, "window": 1, "emb_dim": 4, "pooling": "fo"}
    options |= {"finetune": tmp_path, "save_path": tmp_path / "s"}
    options |= {"schedule": "one_cycle", "optimizer": "adamw"}
    code, _, error = run(data_dir=small_ptb, **options)
    assert code == 2 and "`finetune`: the model in" in error
    assert not (tmp_path / "s").exists()
