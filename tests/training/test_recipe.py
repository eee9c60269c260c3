"""The parts of the awd recipe in a whole run, interrupted and not."""

from dataclasses import replace

import keras
import numpy as np
import pytest

from keras_qrnn.data import Vocabulary, load_corpus
from keras_qrnn.training import TrainingOptions
from keras_qrnn.training.callbacks import has_stalled
from keras_qrnn.training.checkpoint import read_meta
from keras_qrnn.training.language_model import (
    build_language_model,
    build_optimizer,
    train_language_model,
)
from keras_qrnn.training.options import PRESETS
from keras_qrnn.training.schedules import OneCycle

trains = pytest.mark.skipif(
    keras.config.backend() == "numpy", reason="the NumPy backend does not train"
)
# Everything at once. An epoch has two batches of 80 steps and one of 40.
WHOLE = {
    "units": 6, "emb_dim": 5, "layers": 1, "tied": True, "locked_dropout": True,
    "embedding_dropout": 0.1, "kernel_dropout": 0.1, "dropout": 0.2, "zoneout": 0.0,
    "activation_regularization": 2.0, "temporal_regularization": 1.0,
    "batch_size": 20, "seq_len": 80, "random_lengths": True, "epochs": 4,
    "save_every": 2, "optimizer": "adamw", "learning_rate": 0.05, "weight_decay": 0.01,
    "schedule": "one_cycle", "beta_1": 0.8, "cycle_beta_1": 0.7, "beta_2": 0.99,
    "average_trigger": 1,
}  # fmt: skip


class Interrupt(keras.callbacks.Callback):
    def __init__(self, epoch, batch):
        super().__init__()
        self.at = epoch, batch
        self.epoch = None

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if (self.epoch, batch) == self.at:
            raise KeyboardInterrupt


def final_state(path):
    with np.load(path / "checkpoint.npz", allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files if "/" in name}


@pytest.fixture
def _compiled_once(tmp_path_factory):
    """JAX compiles the same step for each run. Later runs read it from a file."""
    if keras.config.backend() != "jax":
        yield
        return
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    before = [getattr(jax.config, name) for name in names]
    values = (str(tmp_path_factory.mktemp("jax_cache")), 0.0, 0)
    for name, value in zip(names, values, strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in zip(names, before, strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@trains
@pytest.mark.usefixtures("_compiled_once")
def test_an_interrupted_run_ends_with_the_same_bits(small_ptb, tmp_path, monkeypatch):
    stalled = lambda values, epochs: len(values) >= 2  # noqa: E731
    monkeypatch.setattr("keras_qrnn.training.callbacks.has_stalled", stalled)
    corpus = load_corpus(data_dir=small_ptb)
    vocabulary = Vocabulary.build(corpus.train)

    def run(name, interrupts=(), **changed):
        return train_language_model(
            corpus, vocabulary, TrainingOptions(**(WHOLE | changed)), tmp_path / name,
            resume=True, callbacks=list(interrupts), verbose=0,
        )  # fmt: skip

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("cut", [Interrupt(2, 2)])
    with pytest.raises(ValueError, match=r"`resume`: .* epochs=4\. Received: epochs=5"):
        run("cut", epochs=5)  # another cycle
    cut = run("cut")
    expected, found = final_state(tmp_path / "whole"), final_state(tmp_path / "cut")
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert np.array_equal(found[name], value), name
    for row, other in zip(whole, cut, strict=True):
        assert {**row, "seconds": 0} == {**other, "seconds": 0}
    # The average began after the second epoch, before the interruption.
    optimizer = build_language_model(
        TrainingOptions(**WHOLE), len(vocabulary), 1
    ).optimizer
    names = [variable.name for variable in optimizer.variables]
    start = expected[f"optimizer/{names.index('average_start')}"]
    steps = expected[f"optimizer/{names.index('iteration')}"]
    assert (start, steps) == (6, 12)
    rates = [row["learning_rate"] for row in whole]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0.00005, rel=1e-3)


@pytest.mark.one_backend("torch")
def test_checkpoints_further_apart_than_epochs(small_ptb, tmp_path, capsys):
    """A checkpoint is written after the epoch in which `save_every` steps are full."""
    corpus = load_corpus(data_dir=small_ptb)
    vocabulary = Vocabulary.build(corpus.train)
    written = []

    class Run(Interrupt):
        def on_epoch_begin(self, epoch, logs=None):
            super().on_epoch_begin(epoch)
            meta = read_meta(tmp_path / "cut" / "checkpoint.npz")
            written.append((epoch, meta["epoch"], meta["step"]))
            # No model of an epoch that a resumed run would train again.
            exists = (tmp_path / "cut" / "model.keras").exists()
            assert exists == bool(meta["epoch"])

    def run(name, *callbacks, save_every=8, verbose=0):  # an epoch has 4 steps
        chosen = {"units": 4, "emb_dim": 4, "layers": 1, "zoneout": 0.0, "epochs": 6}
        chosen |= {"batch_size": 20, "seq_len": 60, "learning_rate": 0.1}
        options = TrainingOptions(**chosen, save_every=save_every)
        return train_language_model(
            corpus, vocabulary, options, tmp_path / name,
            resume=True, callbacks=list(callbacks), verbose=verbose,
        )  # fmt: skip

    with pytest.raises(KeyboardInterrupt):
        run("cut", Run(3, 2))
    assert written == [(0, 0, 0), (1, 0, 0), (2, 2, 0), (3, 2, 0)]
    run("cut", Run(9, 0))
    assert written[4:] == [(2, 2, 0), (3, 2, 0), (4, 4, 0), (5, 4, 0)]
    assert read_meta(tmp_path / "cut" / "checkpoint.npz")["epoch"] == 6

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 2

    run("stopped", Stop())
    assert read_meta(tmp_path / "stopped" / "checkpoint.npz")["epoch"] == 3
    run("stopped")
    # In the middle of the epoch after which a callback ends the training.
    with pytest.raises(KeyboardInterrupt):
        run("middle", Interrupt(2, 3), save_every=1)
    capsys.readouterr()
    run("middle", Stop(), save_every=1, verbose=2)
    printed = capsys.readouterr().out
    assert "Epoch 3/6" in printed and "Epoch 4" not in printed
    meta = read_meta(tmp_path / "middle" / "checkpoint.npz")
    assert (meta["epoch"], meta["step"]) == (3, 0)
    run("middle", save_every=1)
    run("whole")
    expected = final_state(tmp_path / "whole")
    for other in ("cut", "stopped", "middle"):
        found = final_state(tmp_path / other)
        for name, value in expected.items():
            assert np.array_equal(found[name], value), name


@pytest.mark.parametrize(
    ("values", "epochs", "expected"),
    [
        ([], 1, False),
        ([5.0], 1, False),
        ([5.0, 6.0], 1, False),  # the one before does not count
        ([5.0, 6.0, 5.5], 1, True),
        ([5.0, 6.0, 4.5], 1, False),
        ([9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 8.5], 5, False),
        ([9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 9.5], 5, True),
    ],
)
def test_the_criterion_of_a_stall(values, epochs, expected):
    assert has_stalled(values, epochs) is expected


def test_preset():
    options = TrainingOptions(**PRESETS["awd"])
    assert (options.layers, options.units, options.windows) == (4, 1550, [2, 1, 1, 1])
    optimizer = build_optimizer(options, 100)
    steps = 100 * options.epochs
    for schedule in (optimizer._learning_rate, optimizer._beta_1):
        assert isinstance(schedule, OneCycle) and schedule.steps == steps
    peak = int(steps * options.cycle_rise)
    assert float(schedule(peak)) == pytest.approx(options.cycle_beta_1)
    assert float(schedule(0)) == pytest.approx(options.beta_1)
    with pytest.raises(ValueError, match="needs the batches of an epoch"):
        build_optimizer(options)
    plain = build_optimizer(replace(options, schedule="decay"))
    assert plain.beta_1 == options.beta_1
    assert float(plain.learning_rate) == pytest.approx(options.learning_rate)
    sgd = replace(options, schedule="decay", optimizer="sgd", average_trigger=5)
    assert build_optimizer(sgd).triggered_average


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"average_trigger": 5, "weight_average": 0.9}, "exclude each other"),
        ({"cycle_rise": 0.5, "cycle_anneal": 0.5}, "must have a sum below 1"),
        ({"kernel_dropout": 0.1, "cell": "lstm"}, "`kernel_dropout` goes with the"),
        ({"schedule": "cosine"}, "`schedule` must be one of"),
        ({"activation_regularization": -1.0}, "`activation_regularization`"),
        ({"average_trigger": -1}, "`average_trigger`"),
    ],
)
def test_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        TrainingOptions(**change)
