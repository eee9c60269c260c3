"""The program that trains the sentiment classifier, on a few reviews of the sample."""

import json

import keras
import pytest

from keras_qrnn.data import load_corpus, sentiment_sample
from keras_qrnn.data.imdb import load_reviews
from tests.examples.programs import script

train_sentiment = script("train_sentiment")
TINY = [
    "--dataset", "sample", "--units", "3", "--layers", "2", "--emb_dim", "2",
    "--batch_size", "40", "--epochs", "1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _few_reviews(monkeypatch):
    monkeypatch.setattr(sentiment_sample, "REVIEWS", {"train": 80, "test": 40})


@pytest.mark.one_backend("torch")
def test_train_evaluate_and_draw(tmp_path, capsys):
    path = tmp_path / "run"
    arguments = [*TINY, "--save_path", str(path), "--draw", "3"]
    assert train_sentiment.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "test accuracy: " in printed and "(best reachable: " in printed
    record = json.loads((path / "run.json").read_text())
    (a, b), (c, d) = record["test_confusion"]
    assert a + b + c + d == 40 and record["test"] == (a + d) / 40
    assert record["options"]["units"] == 3 and "keras" in record["versions"]
    names = {"model.keras", "vocabulary.json", "checkpoint.npz", "log.csv"}
    names |= {"training.png", "states.png", "run.json", "logs"}
    assert names <= {file.name for file in path.iterdir()}
    # Again: refused, resumed, only evaluated.
    assert train_sentiment.main(arguments) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert train_sentiment.main([*arguments, "--resume"]) == 0
    assert train_sentiment.main([*arguments, "--notrain", "--verbose", "0"]) == 0
    evaluated = capsys.readouterr().out
    assert f"test accuracy: {record['test']:.2%} of 40 reviews" in evaluated
    # Not on other data; and without the files that the run started from.
    for other, message in (
        (["--valid_seed", "1"], "must give the reviews of the run"),
        (["--max_len", "5"], "`max_len` must be None, as in the run"),
    ):
        assert train_sentiment.main([*arguments, "--notrain", *other]) == 2
        assert message in capsys.readouterr().err
    moved = ["--notrain", "--embeddings", str(tmp_path / "moved.txt")]
    assert train_sentiment.main([*arguments, *moved]) == 0


@pytest.mark.one_backend
def test_text_is_written_for_a_language_model(tmp_path, capsys):
    directory = tmp_path / "text"
    arguments = ["--dataset", "sample", "--valid_size", "20"]
    assert train_sentiment.main([*arguments, "--write_text", str(directory)]) == 0
    corpus = load_corpus(data_dir=directory)
    assert [len(corpus.train), len(corpus.valid), len(corpus.test)] == [60, 10, 10]
    reviews = load_reviews("sample", valid_size=20).valid
    labels = dict(zip(reviews.texts, reviews.labels, strict=True))
    for split in (corpus.valid, corpus.test):
        assert {labels[text] for text in split} == {0, 1}
    # A corpus is not written over another one.
    assert train_sentiment.main([*arguments, "--write_text", str(directory)]) == 2
    message = f"{directory} holds train.txt, valid.txt, test.txt already. Use another"
    assert message in capsys.readouterr().err


@pytest.mark.one_backend
def test_names_of_run_directories():
    def name(*given):
        parsed = train_sentiment.parser().parse_args(given)
        options = train_sentiment.options_from(parsed)
        return str(train_sentiment.save_path_of(parsed, options))

    assert name() == "sentiment-qrnn_model"
    assert name("--lstm", "--dataset", "sample") == "sentiment-lstm_sample"
    assert name("--data_dir", "x/aclImdb", "--pretrained", "y") == (
        "sentiment-qrnn_aclImdb_pretrained"
    )
    assert name("--first_qrnn_k", "4", "--save_path", "z") == "z"


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data_dir", "nowhere"], "must hold train/pos"),
        (["--data_dir", "", "--dataset", "imdb"], "`data_dir` must be a path"),
        (["--embeddings", "nowhere.txt"], "`embeddings` must be a file of word"),
        (["--embeddings", "."], "`embeddings` must be a file of word vectors"),
        (["--pretrained", "nowhere"], "`pretrained` must be a directory that train_lm"),
        (["--valid_size", "0"], "`valid_size` must be a positive integer"),
        (["--valid_size", "80"], "`valid_size` must be below 80"),
        (["--valid_seed", "-1"], "`valid_seed` must be"),
        (["--draw", "-1"], "`draw` must be"),
        (["--draw", "40"], "`draw` must be below 40"),
        (["--write_text", ""], "`write_text` must be a path"),
        (["--lstm", "--zoneout", "0.1"], "`zoneout` goes with the QRNN"),
        (["--units", "100000000"], "must fit in the memory"),
        (["--write_text", "/dev/null"], "`write_text` must be a directory"),
        (["--notrain"], "`save_path` must be a directory that train_sentiment.py"),
        (["--config", "nowhere.json"], "`config` cannot be read"),
        (["--encoding", "first"], "`encoding` must be one of"),
    ],
)
def test_bad_options(tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(keras.Model, "fit", None)
    data = ["--dataset", "sample"] if "--data_dir" not in options else []
    assert train_sentiment.main([*data, *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
