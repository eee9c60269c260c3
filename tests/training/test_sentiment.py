"""Training of the sentiment classifier: what it starts from, its rates, resuming."""

import copy
import csv
import os
import pickle
from dataclasses import replace

import keras
import numpy as np
import pytest
from keras import ops

from keras_qrnn.data import Corpus, Vocabulary
from keras_qrnn.data.imdb import Labelled, Reviews
from keras_qrnn.data.word_vectors import read_word_vectors
from keras_qrnn.models.sentiment_classifier import logits_of
from keras_qrnn.training import TrainingOptions, sentiment
from keras_qrnn.training.checkpoint import load_checkpoint, save_checkpoint
from keras_qrnn.training.experiment import has_diverged, train_experiment
from keras_qrnn.training.language_model import LanguageModelling
from keras_qrnn.training.run_directory import RunDirectory
from keras_qrnn.training.sentiment import (
    SentimentAnalysis,
    SentimentOptions,
    confusion_matrix,
    count_weights,
    load_sentiment,
)
from keras_qrnn.training.translation import TranslationOptions
from tests.training.test_recipe import Interrupt, final_state

trains = pytest.mark.skipif(
    keras.config.backend() == "numpy", reason="the NumPy backend does not train"
)
TINY = {
    "units": 3, "layers": 2, "emb_dim": 2, "batch_size": 4, "epochs": 2,
    "save_every": 2, "learning_rate": 0.05, "dropout": 0.2,
}  # fmt: skip


def reviews():
    """16 reviews, which all have 4 or 8 words: few shapes to compile."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 16)
    texts = [
        " ".join([("bad", "good")[y], *rng.choice(["a", "b", "c"], 3 + 4 * (n % 2))])
        for n, y in enumerate(labels)
    ]
    both = Labelled(texts, labels)
    return Reviews("tiny", both, both.chosen(np.arange(8)), both.chosen(np.arange(9)))


def weights_of(model):
    return {w.path.partition("/")[2]: ops.convert_to_numpy(w) for w in model.weights}


@trains
@pytest.mark.parametrize("optimizer", ["rmsprop", "adamw"])
def test_an_interrupted_run_ends_with_the_same_bits(tmp_path, optimizer):
    if optimizer == "adamw" and keras.config.backend() != "torch":
        pytest.skip("one optimizer is enough where each run compiles")
    options = SentimentOptions(
        **TINY, optimizer=optimizer, layer_rate=0.5, unfreeze_epochs=1,
        weight_average=0.9, embedding_dropout=0.1, kernel_dropout=0.1,
    )  # fmt: skip

    def run(name, *callbacks):
        experiment = SentimentAnalysis(reviews(), options)
        return train_experiment(
            experiment, tmp_path / name, resume=True, callbacks=callbacks, verbose=0
        )

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("cut", Interrupt(1, 2))
    cut = run("cut")
    expected, found = final_state(tmp_path / "whole"), final_state(tmp_path / "cut")
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert np.array_equal(found[name], value), name
    for row, other in zip(whole, cut, strict=True):
        assert {**row, "seconds": 0} == {**other, "seconds": 0}
    # The best epoch's model predicts what validation saw.
    model, vocabulary = load_sentiment(str(tmp_path / "cut"))
    experiment = SentimentAnalysis(reviews(), options)
    assert vocabulary.words == experiment.vocabulary.words
    logits = logits_of(model, experiment.tokens["valid"], 3)
    accuracy = np.mean((logits > 0) == experiment.reviews.valid.labels)
    assert accuracy == max(row["val_accuracy"] for row in whole)


@trains
@pytest.mark.parametrize("optimizer", ["rmsprop", "adamw", "sgd"])
def test_layers_are_unfrozen_from_the_last_to_the_first(optimizer):
    if optimizer != "rmsprop" and keras.config.backend() != "torch":
        pytest.skip("one optimizer is enough where each step compiles")
    options = SentimentOptions(
        **TINY | {"dropout": 0.0}, optimizer=optimizer, unfreeze_epochs=1
    )
    experiment = SentimentAnalysis(reviews(), options)
    batches = experiment.batches()
    model = experiment.model(1)  # an epoch is one step
    names = ["logit", "qrnn_1", "qrnn_0", "embedding"]
    for step in range(4):
        before = weights_of(model)
        model.train_on_batch(*batches[0])
        moved = {
            name for name, weight in weights_of(model).items()
            if not np.array_equal(weight, before[name])
        }  # fmt: skip
        for n, layer in enumerate(names):
            assert any(layer in name for name in moved) == (n <= step), (step, layer)


@pytest.mark.one_backend("torch")
def test_lower_layers_learn_at_lower_rates():
    def steps(rate):
        options = SentimentOptions(
            **TINY | {"dropout": 0.0}, optimizer="sgd", layer_rate=rate, l2=0.0
        )
        experiment = SentimentAnalysis(reviews(), options)
        keras.utils.set_random_seed(1)
        model = experiment.model(1)
        before = weights_of(model)
        model.train_on_batch(*experiment.batches()[0])
        return {name: w - before[name] for name, w in weights_of(model).items()}

    whole, scaled = steps(1.0), steps(0.5)
    depths = {"logit": 0, "qrnn_1": 1, "qrnn_0": 2, "embedding": 3}
    for name, step in whole.items():
        (depth,) = (n for layer, n in depths.items() if layer in name)
        np.testing.assert_allclose(
            scaled[name], step * 0.5**depth, rtol=1e-3, atol=1e-7
        )
        assert np.abs(step).max() > 0


@trains
def test_a_run_starts_from_a_language_model(tmp_path):
    texts = reviews().train.texts
    corpus = Corpus("tiny", texts, texts[:4], texts[:4])
    vocabulary = Vocabulary.build([*corpus.train, "<unk>"])
    recipe = TrainingOptions(
        units=3, emb_dim=2, layers=2, tied=True, first_window=3, batch_size=4,
        seq_len=8, epochs=1, pooling="ifo", zoneout=0.3,
    )  # fmt: skip
    language_model = LanguageModelling(corpus, vocabulary, recipe)
    train_experiment(language_model, tmp_path / "lm", verbose=0)
    options = SentimentOptions(
        **TINY | {"emb_dim": None}, pretrained=str(tmp_path / "lm")
    )
    experiment = SentimentAnalysis(reviews(), options)
    model = experiment.start(experiment.model(1))
    trained = experiment.trained
    expected = ops.convert_to_numpy(trained.embedding.embeddings)
    found = ops.convert_to_numpy(model.embedding.embeddings)
    assert np.array_equal(found[1:], expected) and not found[0].any()
    for layer, other in zip(model.recurrent, trained.recurrent, strict=True):
        assert (layer.units, layer.window) == (other.units, other.window)
        for one, two in zip(layer.get_weights(), other.get_weights(), strict=True):
            assert np.array_equal(one, two)
    assert [layer.window for layer in model.recurrent] == [3, 2]
    assert not experiment.scales
    # The recurrent layers read the review as the language model does.
    tokens = experiment.tokens["train"][0][None]
    for layer in trained.recurrent:
        layer.reset_state()
    expected = trained.with_batch_size(1).hidden(ops.convert_to_tensor(tokens - 1))
    outputs = model.embedding(tokens)
    for layer in model.recurrent:
        layer.return_sequences = True
        outputs = layer(outputs)
    np.testing.assert_allclose(
        ops.convert_to_numpy(outputs), ops.convert_to_numpy(expected), rtol=1e-4
    )
    other = SentimentOptions(**TINY | {"emb_dim": 3}, pretrained=str(tmp_path / "lm"))
    with pytest.raises(ValueError, match="`emb_dim` must be 2, as in that run"):
        SentimentAnalysis(reviews(), other)
    assert "0.00% of the training reviews' words unknown" in experiment.summary
    assert experiment.sizes == {
        "units": [3, 2], "layers": 2, "window": [3, 2], "dense": False,
        "pooling": "ifo", "zoneout": 0.3, "emb_dim": 2,
    }  # fmt: skip
    # Also defaults, if they are given: those of `units`, `layers`, `pooling`, `dense`.
    for changed in ({"units": 5}, {"layers": 3}, {"window": 4}, {"first_window": 2},
                    {"pooling": "f"}, {"units": 256}, {"layers": 4},
                    {"pooling": "fo"}, {"dense": True}, {"vocab_size": 4}):  # fmt: skip
        other = SentimentOptions(**changed, pretrained=str(tmp_path / "lm"))
        with pytest.raises(ValueError, match=f"`{next(iter(changed))}` must be"):
            SentimentAnalysis(reviews(), other)
    taken = {"vocab_size": len(vocabulary), "units": 3, "dense": False, "zoneout": 0.0}
    other = SentimentOptions(**taken, pretrained=str(tmp_path / "lm"))
    assert SentimentAnalysis(reviews(), other).sizes["zoneout"] == 0
    with pytest.raises(FileNotFoundError, match="`pretrained` must be a directory"):
        SentimentAnalysis(
            reviews(), SentimentOptions(pretrained=str(tmp_path / "nowhere"))
        )
    if keras.config.backend() != "torch":
        return  # what follows is the same on all backends
    # A run that goes on does not need the language model.
    first = train_experiment(experiment, tmp_path / "run", verbose=0)
    (tmp_path / "lm").rename(tmp_path / "moved")
    options = options.changed(epochs=3)
    resumed = SentimentAnalysis(reviews(), options, tmp_path / "run")
    assert resumed.trained is None and resumed.sizes == experiment.sizes
    history = train_experiment(resumed, tmp_path / "run", resume=True, verbose=0)
    assert history[:2] == first and len(history) == 3
    with pytest.raises(ValueError, match="`units` must be 3, as in that run"):
        SentimentAnalysis(reviews(), options.changed(units=256), tmp_path / "run")
    # One that starts does, and one of another language model is none to go on with.
    for other, path in ((options, "new"), (options.changed(pretrained="x"), "run")):
        with pytest.raises(FileNotFoundError, match="`pretrained` must be a directory"):
            SentimentAnalysis(reviews(), other, tmp_path / path)


@pytest.mark.one_backend("torch")
def test_a_language_model_without_the_unknown_word_is_refused(tmp_path):
    texts = reviews().train.texts
    corpus = Corpus("tiny", texts, texts[:4], texts[:4])
    recipe = TrainingOptions(units=2, layers=1, batch_size=4, seq_len=8, epochs=1)
    vocabulary = Vocabulary.build(corpus.train)
    experiment = LanguageModelling(corpus, vocabulary, recipe)
    train_experiment(experiment, tmp_path, verbose=0)
    with pytest.raises(ValueError, match=r"`pretrained` .* vocabulary has <unk>"):
        SentimentAnalysis(reviews(), SentimentOptions(pretrained=str(tmp_path)))


@pytest.mark.one_backend("torch")
@pytest.mark.parametrize("cell", ["qrnn", "lstm"])
def test_weights_are_counted(cell):
    options = SentimentOptions(**TINY, cell=cell)
    experiment = SentimentAnalysis(reviews(), options)
    expected = sum(w.numpy().size for w in experiment.model(1).trainable_variables)
    found = count_weights(cell, len(experiment.vocabulary), **experiment.sizes)
    assert found == expected - 4  # the logit's


@pytest.mark.one_backend("torch")
def test_word_vectors_are_read_once(tmp_path, monkeypatch):
    """A search makes an experiment for each trial. Another file is read, though."""
    path = tmp_path / "vectors.txt"
    times = []

    def counted(*arguments):
        times.append(arguments)
        return read_word_vectors(*arguments)

    monkeypatch.setattr(sentiment, "read_word_vectors", counted)
    for content, reads in (("good 3 4\n", 1), ("good 5 6\n", 2)):
        path.write_text(content)
        os.utime(path, ns=(0, reads))
        for epochs in (1, 2):
            options = SentimentOptions(epochs=epochs, embeddings=str(path))
            found = SentimentAnalysis(reviews(), options).vectors["good"]
            assert f"good {found[0]:.0f} {found[1]:.0f}\n" == content
        assert len(times) == reads


@pytest.mark.one_backend("torch")
def test_a_run_starts_from_word_vectors(tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_text("good 3 4\nbad -3 -4\nelse 1 1\n")
    options = SentimentOptions(**TINY | {"emb_dim": None}, embeddings=str(path))
    experiment = SentimentAnalysis(reviews(), options)
    assert "2 of them found" in experiment.summary
    assert not experiment.scales  # the scale is that of the vectors
    assert experiment.sizes["emb_dim"] == 2
    model = experiment.start(experiment.model(1))
    matrix = ops.convert_to_numpy(model.embedding.embeddings)
    words = experiment.vocabulary.words
    assert matrix[1 + words.index("good")].tolist() == [3, 4]
    assert matrix[1 + words.index("bad")].tolist() == [-3, -4]
    assert not matrix[0].any() and matrix[1 + words.index("a")].any()
    with pytest.raises(ValueError, match="`emb_dim` must be 2, as in the word"):
        SentimentAnalysis(reviews(), SentimentOptions(emb_dim=50, embeddings=str(path)))
    # A run that goes on does not need them. Its checkpoint may be an earlier version's.
    train_experiment(experiment, tmp_path / "run", verbose=0)
    path.rename(tmp_path / "moved.txt")
    options = options.changed(epochs=3)
    resumed = SentimentAnalysis(reviews(), options, tmp_path / "run")
    assert "found" not in resumed.summary
    train_experiment(resumed, tmp_path / "run", resume=True, verbose=0)
    model = resumed.model(1)
    meta = load_checkpoint(tmp_path / "run" / "checkpoint.npz", model)
    del meta["options"]["sizes"]
    save_checkpoint(tmp_path / "run" / "checkpoint.npz", model, meta)
    with pytest.raises(FileNotFoundError, match=r"vectors\.txt"):
        SentimentAnalysis(reviews(), options, tmp_path / "run")
    (tmp_path / "moved.txt").rename(path)
    options = options.changed(epochs=4)
    resumed = SentimentAnalysis(reviews(), options, tmp_path / "run")
    history = train_experiment(resumed, tmp_path / "run", resume=True, verbose=0)
    assert len(history) == 4


@pytest.mark.one_backend("torch")
def test_the_best_model_of_a_killed_run_is_loaded(tmp_path):
    """No checkpoint was written yet: an epoch has fewer steps than `save_every`."""

    class Kill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 3:
                raise KeyboardInterrupt

    options = SentimentOptions(**TINY | {"save_every": 1000, "epochs": 5})
    experiment = SentimentAnalysis(reviews(), options)
    with pytest.raises(KeyboardInterrupt):
        train_experiment(experiment, tmp_path, callbacks=[Kill()], verbose=0)
    assert not (tmp_path / "model.keras").exists()
    with (tmp_path / "log.csv").open() as file:
        best = max(float(row["val_accuracy"]) for row in csv.DictReader(file))
    model, _ = load_sentiment(tmp_path, "save_path")
    logits = logits_of(model, experiment.tokens["valid"], 4)
    assert np.mean((logits > 0) == experiment.reviews.valid.labels) == best
    # Resumed, these epochs are trained again.
    history = train_experiment(experiment, tmp_path, resume=True, verbose=0)
    assert len(history) == 5 and (tmp_path / "model.keras").exists()
    assert RunDirectory(tmp_path).best_model() == tmp_path / "model.keras"


@pytest.mark.one_backend("torch")
def test_a_divergence_is_no_accuracy(tmp_path, monkeypatch):
    options = SentimentOptions(**TINY, optimizer="sgd", l2=1e30, seed=1)
    experiment = SentimentAnalysis(reviews(), options)
    history = train_experiment(experiment, tmp_path, verbose=0)
    assert len(history) == 1 and np.isnan(history[0]["val_accuracy"])
    assert has_diverged(experiment, history)
    assert "a smaller --learning_rate" in experiment.why_diverged()
    # What a run starts from is tried too.
    start = experiment.start

    def start_infinite(model):
        model.copy_weights([weight * float("inf") for weight in model.weights])
        return start(model)

    assert "with a finite loss" in experiment.why_diverged()
    monkeypatch.setattr(experiment, "start", start_infinite)
    assert "with no finite loss" in experiment.why_diverged()


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"cell": "lstm", "zoneout": 0.1}, "`zoneout` goes with the QRNN"),
        ({"cell": "lstm", "pretrained": "x"}, "`pretrained` goes with the QRNN"),
        ({"embeddings": "x", "pretrained": "y"}, "exclude each other"),
        ({"weight_decay": 0.1, "layer_rate": 0.5}, "`weight_decay` does not go with"),
        ({"optimizer": "rmsprop", "average_trigger": 2}, "`average_trigger` goes with"),
        ({"embeddings": "x", "embedding_scale": 0.1}, "does not go with `embeddings`"),
        ({"pretrained": "x", "embedding_scale": 0.2}, "does not go with `pretrained`"),
        ({"vocab_size": 2}, "`vocab_size`"),
        ({"l2": -1.0}, "`l2` must not be negative"),
        ({"unfreeze_epochs": -1}, "`unfreeze_epochs`"),
    ],
)
def test_bad_options(changed, message):
    with pytest.raises(ValueError, match=message):
        SentimentOptions(**changed)


@pytest.mark.one_backend
def test_options_know_which_of_them_were_given():
    options = TranslationOptions(10, qrnn_k=3, units=320)
    assert options.given == {"epochs", "window", "units"}  # defaults among them
    changed = options.changed(first_qrnn_k=5, window=2)
    assert changed.given == {"epochs", "window", "units", "first_window"}
    assert (changed.window, changed.first_window, changed.epochs) == (2, 5, 10)
    for copied in (copy.copy(options), pickle.loads(pickle.dumps(options))):  # noqa: S301
        assert copied == options and copied.given == options.given
    assert replace(options, units=64).given == {"window", "units"}
    for other in (replace(options, qrnn_k=5), replace(TranslationOptions(), qrnn_k=5)):
        assert "window" in other.given and other.changed(seed=1).window == 5


@pytest.mark.one_backend
def test_options_that_the_machine_cannot_hold():
    experiment = SentimentAnalysis(reviews(), SentimentOptions(units=10**6))
    with pytest.raises(ValueError, match="must fit in the memory of this machine"):
        experiment.prepare(False)


@pytest.mark.one_backend
def test_confusion_matrix():
    labels = np.array([0, 0, 0, 1, 1])
    logits = np.array([-1.0, 2.0, 0.0, 1.0, -3.0])
    assert confusion_matrix(labels, logits) == [[2, 1], [1, 1]]
