"""The files that a search writes, run as a user runs it."""

import json
import struct

import keras
import pytest

from keras_qrnn.data import Vocabulary, load_corpus
from keras_qrnn.training import TrainingOptions, evaluate_perplexity
from search_task import SearchedCorpus
from tests.examples.test_train_lm import train_lm
from tests.tuning.searches import (
    LM,
    SPACE,
    TINY,
    TRIALS,
    arguments,
    once,
    parse,
    trains,
    trials,
)

pytestmark = trains


def test_results(searched, small_ptb):
    path, printed = searched
    rows = trials(path)
    assert [row["trial"] for row in rows] == ["0", "1", "2"][:TRIALS]
    assert {row["status"] for row in rows} == {"COMPLETED"}
    for name, values in SPACE.items():
        space = parse(name, str(values)).values
        for row in rows:
            value = type(space[0])(row[name])
            if isinstance(space, tuple):
                assert space[0] <= value <= space[1]
            else:
                assert value in space
    best = min(rows, key=lambda row: float(row["val_perplexity"]))
    names = {"trials.csv", "best.json", "best_model.keras", "vocabulary.json"}
    names |= {"objective.png", "hyperparameters.png", "parallel.png", "search.json"}
    names |= {"oracle.json", ".lock", *(f"trial_{n}" for n in range(TRIALS))}
    assert {file.name for file in path.iterdir()} == names
    for file in path.glob("*.png"):
        assert file.read_bytes().startswith(b"\x89PNG")
    table = printed.partition("The best:")[2].split("\n\n")[1].splitlines()
    assert len(table) == 1 + TRIALS and table[1].split()[0] == best["trial"]

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


@once
def test_best_config_feeds_train_lm(searched, small_ptb, tmp_path):
    path, _ = searched
    data = arguments(
        data_dir=small_ptb, save_path=tmp_path / "run", config=path / "best.json"
    )
    assert train_lm.options_from(train_lm.parser().parse_args(data)).epochs == 72
    assert train_lm.main([*data, "--epoch", "1", "--notest"]) == 0
    model = keras.saving.load_model(tmp_path / "run" / "model.keras")
    best = keras.saving.load_model(path / "best_model.keras")
    # Keras numbers the names of the models that a process makes.
    named = {"name": "language_model"}
    assert model.get_config() | named == best.get_config() | named


def events(directory):
    """The events in the event files of a directory. They are TFRecord files."""
    from tensorboardX.proto.event_pb2 import Event

    for file in sorted(directory.glob("events.out.tfevents.*")):
        data, at = file.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            yield Event.FromString(data[at + 12 : at + 12 + length])
            at += 12 + length + 4


def test_event_files_for_the_hparams_view(searched):
    """TensorBoard reads the session's start, values, metric and end."""
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


@once
def test_max_tokens_keeps_the_vocabulary(small_ptb):
    data = SearchedCorpus(data_dir=str(small_ptb), max_tokens=100)
    experiment = LM.load(data)(TrainingOptions(batch_size=8, seq_len=5))
    corpus, vocabulary = experiment.corpus, experiment.vocabulary
    whole = load_corpus(data_dir=small_ptb)
    assert vocabulary.words == Vocabulary.build(whole.train).words
    assert corpus.train == whole.train[: len(corpus.train)]
    assert 100 <= len(vocabulary.encode(corpus.train)) < 130
    assert corpus.valid == whole.valid
