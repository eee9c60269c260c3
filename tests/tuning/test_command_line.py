"""The search's command line: bad options, silence, the commands that it prints."""

import importlib
import sys

import pytest

import search
from tests.tuning.searches import SCRIPT, TINY, trains

pytestmark = trains


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
