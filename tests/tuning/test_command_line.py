"""The search's command line: bad options, silence, the commands that it prints."""

import importlib
import os
import re
import sys

import pytest

import search
from tests.tuning.searches import SCRIPT, TINY, FakeTask, trials

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
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(FakeTask, "load", interrupted)
    code, _, error = run(save_path=tmp_path / "s", **TINY)
    assert code == 130 and re.fullmatch(INTERRUPTED, error)
    assert not (tmp_path / "s").exists()
