"""train_sentiment.py, on a few reviews of the sample, and classify.py."""

import io
import json
import sys

import keras
import numpy as np
import pytest

from keras_qrnn.data import Vocabulary, encode_reviews, load_corpus, sentiment_sample
from keras_qrnn.data.imdb import load_reviews
from keras_qrnn.models import SentimentModel
from keras_qrnn.training import command_line, load_sentiment
from keras_qrnn.training.run_directory import RunDirectory
from tests.examples.programs import arguments as options_of
from tests.examples.programs import script

train_sentiment, classify = script("train_sentiment"), script("classify")
TINY = [
    "--dataset", "sample", "--units", "3", "--layers", "2", "--emb_dim", "2",
    "--batch_size", "40", "--epochs", "1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _few_reviews(monkeypatch):
    monkeypatch.setattr(sentiment_sample, "REVIEWS", {"train": 80, "test": 40})


@pytest.mark.one_backend("torch")
def test_train_evaluate_and_draw(tmp_path, capsys, monkeypatch):
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
    # Another program classifies the reviews alike.
    test = load_reviews("sample").test
    (tmp_path / "text").write_text("\n".join(test.texts))
    assert classify.main(options_of(load_path=path, input=tmp_path / "text")) == 0
    lines = capsys.readouterr().out.splitlines()
    found = np.array([line.startswith("positive\t") for line in lines])
    assert np.mean(found == test.labels) == record["test"]
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
    # Of several processes the first alone writes and prints, if there may be several.
    arguments.append("--notrain")
    assert train_sentiment.main([*arguments, "--distribution", "data"]) == 2
    assert "`distribution` goes with JAX" in capsys.readouterr().err
    (path / "states.png").unlink()
    for module in (train_sentiment, command_line):
        monkeypatch.setattr(module, "is_first", lambda: False)
    assert train_sentiment.main(arguments) == 0
    assert not capsys.readouterr().out and not (path / "states.png").exists()


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


# classify.py

WORDS = ["<eos>", "<unk>", "a", "fine", "film", "dull", ".", ","]
# A dense QRNN; one as a run has it that started from a language model; an LSTM.
MODELS = {
    "dense": {"units": 4, "layers": 2, "encoding": "last_mean_max", "max_len": 5},
    "pretrained": {"units": [4, 3], "layers": 2, "window": [3, 2], "dense": False},
    "lstm": {"units": 4, "layers": 1, "cell": "lstm"},
}


def write_run(path, **sizes):
    """An untrained model and its vocabulary, as a run leaves them."""
    vocabulary = Vocabulary(WORDS)
    model = SentimentModel(
        len(WORDS), emb_dim=3, embedding_scale=2.0, seed=1,
        vocabulary=vocabulary.fingerprint, **sizes,
    )  # fmt: skip
    model.build()
    model.save(RunDirectory(path).model)
    vocabulary.save(RunDirectory(path).vocabulary)
    return model, vocabulary


@pytest.mark.parametrize("kind", MODELS)
def test_classify(kind, tmp_path, monkeypatch, capsys):
    if kind != "dense" and keras.config.backend() in ("jax", "tensorflow"):
        pytest.skip("one model is enough where each compiles")
    model, vocabulary = write_run(tmp_path, **MODELS[kind])
    lines = {
        "\ufeffA fine, fine film.": "a fine , fine film .",  # a mark of some editors
        "": "",
        "dull": "dull",
        "  <br /> ": "",
        "Dull film. Dull film.": "dull film . dull film .",
        "да": "да",
        "A film, a GOOD film": "a film , a good film",
    }
    text = io.BytesIO("".join(f"{line}\n" for line in lines).encode())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(text))
    assert classify.main(options_of(load_path=tmp_path, batch_size=4)) == 0
    done = capsys.readouterr()
    assert done.err == (
        "classify.py: line 6 has no word that the model knows: its probability says "
        "nothing\n"
    )
    # As if each line were alone.
    answers = done.out.splitlines()
    for words, answer in zip(lines.values(), answers, strict=True):
        if not words:
            assert answer == ""
            continue
        (tokens,) = encode_reviews([words], vocabulary, model.max_len)
        logit = float(model.predict(tokens[None], verbose=0)[0, 0])
        name, probability = answer.split("\t")
        assert name == ("positive" if logit > 0 else "negative")
        assert len(probability) == 6
        assert float(probability) == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-4)
    assert len(set(answers)) > 3


@pytest.mark.one_backend
def test_draw_states_of_a_line(tmp_path, monkeypatch):
    write_run(tmp_path, **MODELS["dense"])
    text, plot = tmp_path / "text", tmp_path / "states.png"
    text.write_text("\n<br />\nA fine, fine film.\ndull")
    draw, drawn = classify.draw_states, []
    monkeypatch.setattr(
        classify, "draw_states", lambda *given: drawn.append(given) or draw(*given)
    )
    assert (
        classify.main(options_of(load_path=tmp_path, input=text, plot_states=plot)) == 0
    )
    assert plot.read_bytes().startswith(b"\x89PNG")
    ((_, _, vocabulary, tokens, title),) = drawn
    assert vocabulary.decode(tokens - 1) == ["fine", ",", "fine", "film", "."]
    assert title.startswith(("line 3: positive, 0.", "line 3: negative, 0."))


@pytest.mark.one_backend("torch")
def test_lines_are_cut_as_the_reviews_of_the_training(tmp_path, capsys):
    """Capitals and `max_len` are those of the run."""
    texts = {"neg": ["A DULL film it was", "Dull"], "pos": ["a Fine film", "fine Fine"]}
    for split in ("train", "test"):
        for label, reviews in texts.items():
            directory = tmp_path / "reviews" / split / label
            directory.mkdir(parents=True)
            for n, review in enumerate(reviews):
                (directory / f"{n}.txt").write_text(review)
    path, files = tmp_path / "run", tmp_path / "reviews"
    sizes = {"units": 3, "layers": 1, "emb_dim": 2, "batch_size": 4, "epochs": 1}
    sizes |= {"max_len": 2, "embedding_scale": 9, "verbose": 0}
    given = options_of(data_dir=files, save_path=path, **sizes)
    assert train_sentiment.main([*given, "--cased", "--lstm"]) == 0
    lines = ["A DULL film", "a dull film", "A Fine film", "DULL film"]
    (tmp_path / "text").write_text("\n".join(lines))
    capsys.readouterr()
    assert classify.main(options_of(load_path=path, input=tmp_path / "text")) == 0
    answers = capsys.readouterr().out.splitlines()
    model, vocabulary = load_sentiment(path)
    assert {"DULL", "Fine"} <= set(vocabulary.words)
    for line, answer in zip(lines, answers, strict=True):
        tokens = vocabulary.ids_of(line)[-2:] + 1
        logit = float(model.predict(tokens[None], verbose=0)[0, 0])
        expected = 1 / (1 + np.exp(-logit))
        assert float(answer.split("\t")[1]) == pytest.approx(expected, abs=1e-4)
    assert answers[0] == answers[3]
    assert len(set(answers)) == 3


@pytest.mark.one_backend
def test_a_broken_model_is_an_error(tmp_path, capsys):
    model, _ = write_run(tmp_path, units=2, layers=1)
    model.logit.bias.assign([np.nan])
    model.save(RunDirectory(tmp_path).model)
    (tmp_path / "text").write_text("\na film\n")
    assert classify.main(options_of(load_path=tmp_path, input=tmp_path / "text")) == 2
    error = capsys.readouterr().err
    assert "Received: nan for the text 'a film'" in error and error.count("\n") == 1


BAD = {
    "none": ({"load_path": None}, "`load_path` must be given: a directory that train_"),
    "no run": ({"load_path": "nowhere"}, "`load_path` must be a directory that train_"),
    "batch": ({"batch_size": 0}, "Option `batch_size` must be a positive integer"),
    "plot": ({"plot_states": "."}, "`plot_states` must name a file"),
    "picture": ({"plot_states": "a.xyz"}, "`plot_states` must name a file of one of"),
    "input": ({"input": "nowhere.txt"}, "`input` must be a file that can be read"),
    "directory": ({"input": "."}, "`input` must be a file that can be read"),
    "not text": ({"input": "model.keras"}, "model.keras is not UTF-8 text"),
    "empty": ({"input": "empty", "plot_states": "a.png"}, "is not empty. Received: no"),
}


@pytest.mark.one_backend
@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD)
def test_bad_options_of_classify(options, message, tmp_path, monkeypatch, capsys):
    write_run(tmp_path, units=2, layers=1)
    (tmp_path / "empty").write_text("\n<br />\n")
    monkeypatch.chdir(tmp_path)
    given = {"load_path": ".", "input": "empty", **options}
    given = {name: value for name, value in given.items() if value is not None}
    assert classify.main(options_of(**given)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "a.png").exists()
