"""The training and sampling scripts, run as a user runs them."""

import csv
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_qrnn.data import BPTTBatches, Vocabulary, load_corpus, text_sample
from keras_qrnn.models import LanguageModel
from keras_qrnn.models.generation import generate, layer_gates
from keras_qrnn.training import (
    TrainingOptions,
    callbacks,
    command_line,
    evaluate_perplexity,
)
from keras_qrnn.training.callbacks import learning_rate_schedule
from keras_qrnn.training.checkpoint import load_checkpoint, read_meta, save_checkpoint
from keras_qrnn.training.language_model import (
    LanguageModelling,
    build_language_model,
    train_language_model,
)
from tests.examples.programs import ROOT, arguments, script

pytestmark = pytest.mark.skipif(
    keras.config.backend() == "numpy", reason="the NumPy backend does not train"
)
TINY = {"units": 8, "emb_dim": 6, "seq_len": 20, "batch_size": 4, "save_every": 7}
TINY["learning_rate"] = 0.2  # a rate of 1 is for large models: here it is unstable
# Runs of many models are in full where nothing is compiled, and short elsewhere.
FULL = keras.config.backend() == "torch"
# What a run writes, reads, says and refuses is the same on all backends.
once = pytest.mark.one_backend("torch")


train_lm, sample_lm = script("train_lm"), script("sample_lm")


@pytest.fixture(scope="module")
def trained(small_ptb, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "model"
    data = arguments(data_dir=small_ptb, save_path=path)
    assert train_lm.main([*data, *arguments(**TINY, epochs=2)]) == 0
    return path


def test_options_and_defaults_of_the_original():
    expected = {
        "unrolled_lstm": False, "epochs": 72, "batch_size": 20, "seq_len": 105,
        "save_every": 100, "units": 640, "layers": 2, "window": 2,
        "emb_dim": 650, "vocab_size": 10001, "zoneout": 0.1, "dropout": 0.5,
        "learning_rate": 1.0, "learning_rate_decay": 0.95, "grad_clip": 10.0,
        "data_dir": None, "train": True, "test": True,
        "lstm": False, "dataset": "ptb", "seed": 0, "dtype_policy": "float32",
        "resume": False,
    }  # fmt: skip
    parsed = train_lm.parser().parse_args([])
    values = asdict(train_lm.options_from(parsed)) | vars(parsed)
    values |= vars(train_lm.CorpusOptions())
    assert {name: values[name] for name in expected} == expected
    options = train_lm.options_from(parsed)
    assert train_lm.save_path_of(parsed, options) == Path("lm-qrnn_model")
    flags = ["--nounrolled_lstm", "--notrain", "--notest"]
    parsed = train_lm.parser().parse_args(flags)
    assert not (parsed.unrolled_lstm or parsed.train or parsed.test)
    parsed = train_lm.parser().parse_args(["--unrolled_lstm"])
    assert train_lm.options_from(parsed).cell == "unrolled_lstm"


def test_learning_rate_falls_after_the_sixth_epoch():
    schedule = learning_rate_schedule(1.0, 0.95).schedule
    rates = [schedule(epoch) for epoch in range(8)]
    assert rates == [1.0] * 6 + [0.95, 0.95**2]


def test_what_a_run_leaves(trained, small_ptb, capsys):
    names = {p.name for p in trained.iterdir()}
    assert names == {".lock", "checkpoint.npz", "log.csv", "logs", "model.keras"} | {
        "run.json", "training.png", "vocabulary.json",
    }  # fmt: skip
    record = json.loads((trained / "run.json").read_text())
    assert "--units 8" in record["command"] and record["date"]
    assert record["options"]["units"] == 8 and record["weights"] > 100
    assert keras.config.backend() in record["versions"]
    rows = list(csv.DictReader((trained / "log.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert float(rows[1]["val_perplexity"]) < float(rows[0]["val_perplexity"])
    assert list((trained / "logs").glob("events.out.tfevents.*"))
    assert (trained / "training.png").read_bytes().startswith(b"\x89PNG")
    data = arguments(data_dir=small_ptb, save_path=trained)
    assert train_lm.main([*data, "--notrain"]) == 0
    out = capsys.readouterr().out
    tokens = len(Vocabulary.load(trained / "vocabulary.json").encode(
        load_corpus(data_dir=small_ptb).test
    ))  # fmt: skip
    assert f"over {tokens - 1} tokens" in out and "valid perplexity" in out
    shown = float(out.partition("valid perplexity: ")[2].split()[0])
    assert abs(shown - record["valid"]) < 0.01 and record["test"] > 1
    best = min(float(row["val_perplexity"]) for row in rows)
    assert abs(shown - best) < 0.01
    assert train_lm.main([*data, "--notrain", "--notest"]) == 0
    assert "test perplexity" not in capsys.readouterr().out


def test_no_callback_makes_keras_read_the_loss_of_every_step():
    for name, callback in vars(callbacks).items():
        if isinstance(callback, type) and issubclass(
            callback, keras.callbacks.Callback
        ):
            for hook in ("on_batch_end", "on_train_batch_end"):
                assert hook not in vars(callback), name


@once
@pytest.mark.parametrize("lstm", ["lstm", "unrolled_lstm"])
def test_lstm_baselines(small_ptb, tmp_path, lstm, capsys):
    data = arguments(data_dir=small_ptb, save_path=tmp_path, **TINY, epochs=1)
    assert train_lm.main([*data, f"--{lstm}", "--notest"]) == 0
    assert keras.saving.load_model(tmp_path / "model.keras").cell == lstm


def test_sample_comes_within_five_percent_of_the_best_reachable(
    tmp_path, capsys, monkeypatch, request
):
    """What `make demo` trains and prints. On other backends than JAX a part of it.

    Compiled by JAX it takes the least time.
    """
    config = ROOT / "examples" / "sample.json"
    data = arguments(dataset="sample", config=config, save_path=tmp_path)
    corpus, most = load_corpus("sample"), 1.05
    if keras.config.backend() == "jax":
        import jax

        # This runs for longer than it is compiled: here optimizations save time.
        name = "jax_disable_most_optimizations"
        before = jax.config.read(name)
        request.addfinalizer(partial(jax.config.update, name, before))
        jax.config.update(name, False)
    else:
        texts, floor = text_sample.generate({"train": 1500, "valid": 100, "test": 100})
        corpus, most = replace(corpus, **texts, floor_perplexity=floor), 1.5
        data += ["--epochs", "3"]
        monkeypatch.setattr(train_lm.CorpusOptions, "load", lambda _: corpus)
    assert train_lm.main(data) == 0
    out = capsys.readouterr().out
    floors = corpus.floor_perplexity
    for split in ("valid", "test"):
        line = out.partition(f"{split} perplexity: ")[2].splitlines()[0]
        reached, floor = float(line.split()[0]), floors[split]
        assert line.endswith(f"(best reachable: {floor:.2f})")
        assert floor <= reached < most * floor


def final_weights(path):
    with np.load(path / "checkpoint.npz", allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files if "/" in name}


@once
def test_killed_and_resumed_run_ends_with_the_same_weights(small_ptb, tmp_path):
    """SIGKILL in the middle of an epoch, twice, with dropout and zoneout.

    That a resumed run ends with the same weights on each backend, the tests that
    interrupt a run in this process say, the next and tests/training/test_recipe.py.
    """
    epochs = 3
    common = [*arguments(data_dir=small_ptb, epochs=epochs, **TINY), "--notest"]
    command = [sys.executable, str(ROOT / "examples" / "train_lm.py"), *common]
    places = os.pathsep.join(map(str, [ROOT, ROOT / "tests" / "hidden_numba"]))
    environment = os.environ | {"PYTHONPATH": places}

    def run(path, *more, kill_after):
        process = subprocess.Popen(
            [*command, "--save_path", str(path), *more],
            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        # Kill it once a checkpoint in the middle of the epoch is there.
        deadline = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < deadline:
            checkpoint = path / "checkpoint.npz"
            if checkpoint.exists():
                meta = read_meta(checkpoint)
                if (meta["epoch"], meta["step"] > 0) >= (kill_after, True):
                    break
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL

    assert train_lm.main([*common, *arguments(save_path=tmp_path / "whole")]) == 0
    run(tmp_path / "killed", kill_after=0)
    run(tmp_path / "killed", "--resume", kill_after=1)
    resumed = [*common, *arguments(save_path=tmp_path / "killed"), "--resume"]
    assert train_lm.main([*resumed, "--epochs", "1"]) == 2  # in its second
    assert read_meta(tmp_path / "killed" / "checkpoint.npz")["epoch"] < epochs
    assert train_lm.main(resumed) == 0
    whole, killed = (final_weights(tmp_path / n) for n in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    for name, value in whole.items():
        assert np.abs(np.float64(killed[name]) - value).max(initial=0) < 1e-6, name
    logs = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(f)]
        for f in ((tmp_path / n / "log.csv").open() for n in ("whole", "killed"))
    ]
    for a, b in zip(*logs, strict=True):
        for column in a:
            assert abs(float(a[column]) - float(b[column])) < 1e-4, column


AWD = {"first_window": 3, "window": 1, "tied": True, "locked_dropout": True}
AWD |= {"embedding_dropout": 0.1, "hidden_dropout": 0.2, "weight_average": 0.9}
AWD |= {"sampled_words": 8}


class Interrupt(keras.callbacks.Callback):
    def __init__(self, after):
        super().__init__()
        self.after = after

    def on_train_batch_end(self, batch, logs=None):
        self.after -= 1
        if not self.after:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    "chosen",
    [{"optimizer": "adamw", "learning_rate": 0.003, "weight_decay": 0.03}, {}][
        : 2 if FULL else 1
    ],
    ids=["adamw", "sgd"][: 2 if FULL else 1],
)
def test_averages_are_validated_kept_and_resumed(small_ptb, tmp_path, capfd, chosen):
    """Training goes on from the weights, not from their averages, also resumed."""
    corpus = load_corpus(data_dir=small_ptb)
    vocabulary = Vocabulary.build(corpus.train)
    options = TrainingOptions(**(TINY | AWD | chosen), epochs=2)

    def run(path, **more):
        return train_language_model(
            corpus, vocabulary, options, path, verbose=0, **more
        )

    capfd.readouterr()
    history = run(tmp_path / "whole")
    assert capfd.readouterr().out == ""  # with verbose=0, on each backend
    for after in (9, 9) if FULL else (9,):
        with pytest.raises(KeyboardInterrupt):
            interrupt = [Interrupt(after)]
            run(tmp_path / "cut", resume=True, callbacks=interrupt)
    resumed = run(tmp_path / "cut", resume=True)
    whole, cut = (final_weights(tmp_path / n) for n in ("whole", "cut"))
    for name, value in whole.items():
        assert np.abs(np.float64(cut[name]) - value).max(initial=0) < 1e-6, name
    ids = vocabulary.encode(corpus.valid)
    best = min(row["val_perplexity"] for row in history)
    assert abs(min(row["val_perplexity"] for row in resumed) - best) < 1e-4
    model = keras.saving.load_model(tmp_path / "whole" / "model.keras")
    assert abs(evaluate_perplexity(model, ids) - best) < 1e-3
    # The checkpoint's weights, not averaged, are other ones.
    model = build_language_model(options, len(vocabulary))
    load_checkpoint(tmp_path / "whole" / "checkpoint.npz", model)
    model.optimizer.use_ema = False
    assert abs(evaluate_perplexity(model, ids) - best) > 1e-2


@once
def test_a_resumed_run_may_change_the_rates_to_come(small_ptb, tmp_path):
    corpus = load_corpus(data_dir=small_ptb)
    vocabulary = Vocabulary.build(corpus.train)

    def run(path, epoch, constant_epochs):
        options = TrainingOptions(**TINY, epochs=epoch, constant_epochs=constant_epochs)
        return train_language_model(
            corpus, vocabulary, options, tmp_path / path, verbose=0, resume=True
        )

    run("whole", 3, 2)
    run("cut", 2, 6)
    history = run("cut", 3, 2)
    assert history[2]["learning_rate"] == pytest.approx(0.95 * TINY["learning_rate"])
    whole, cut = (final_weights(tmp_path / n) for n in ("whole", "cut"))
    for name, value in whole.items():
        assert np.abs(np.float64(cut[name]) - value).max(initial=0) < 1e-6, name


def test_finetune_starts_from_the_weights_of_another_run(trained, small_ptb, tmp_path):
    corpus = load_corpus(data_dir=small_ptb)
    vocabulary = Vocabulary.build(corpus.train)
    kept = keras.saving.load_model(trained / "model.keras")
    expected = evaluate_perplexity(kept, vocabulary.encode(corpus.valid))
    still = TINY | {"learning_rate": 1e-9, "weight_decay": 0.0, "dropout": 0.25}

    def run(path, source=trained, words=vocabulary, resume=False, **changed):
        options = TrainingOptions(**(still | changed), finetune=str(source))
        return train_language_model(
            corpus, words, options, tmp_path / path, resume, verbose=0
        )

    first = run("cut", epochs=1)
    assert first[0]["val_perplexity"] == pytest.approx(expected, rel=1e-4)
    if not FULL:
        return
    # Resumed, it goes on with its own weights.
    learning = {"learning_rate": 0.2, "weight_average": 0.5}
    run("learning", epochs=1, **learning)
    spelled = trained / ".." / trained.name
    cut = run("learning", spelled, epochs=2, resume=True, **learning)
    with pytest.raises(ValueError, match=r"`resume`: .* finetune="):
        run("learning", tmp_path, epochs=2, resume=True, **learning)
    whole = run("whole", epochs=2, **learning)
    assert cut[1]["loss"] == pytest.approx(whole[1]["loss"], rel=1e-5)
    assert cut[1]["val_perplexity"] != pytest.approx(expected, rel=1e-3)
    with pytest.raises(FileNotFoundError, match=r"`finetune` .* holds no model.keras"):
        run("refused", tmp_path)
    with pytest.raises(ValueError, match=r"`finetune`: .*\(9,\).*Received: .*\(24,\)"):
        run("refused", units=3)
    with pytest.raises(ValueError, match=r"`finetune`: .* another vocabulary"):
        run("refused", words=Vocabulary.build(corpus.train[:50]))
    damaged = shutil.copytree(trained, tmp_path / "damaged") / "model.keras"
    whole = damaged.read_bytes()
    middle = len(whole) // 2
    for left in (whole[:middle], whole[:middle] + bytes(200) + whole[middle + 200 :]):
        damaged.write_bytes(left)
        with pytest.raises(
            ValueError, match=r"`finetune`: .* is not a whole language model"
        ):
            run("refused", damaged.parent)
    assert not (tmp_path / "refused").exists()


@once
def test_interrupted_in_validation(small_ptb, tmp_path):
    """Each step writes a checkpoint. That of the epoch's end is missing."""
    corpus = load_corpus(data_dir=small_ptb)
    vocabulary = Vocabulary.build(corpus.train)
    chosen = {"save_every": 1, "optimizer": "adamw", "learning_rate": 0.01}
    chosen |= {"batch_size": 20, "seq_len": 60, "weight_decay": 0.0}
    options = TrainingOptions(**(TINY | chosen), epochs=1)
    steps = len(BPTTBatches(vocabulary.encode(corpus.train), 20, 60))

    def run(path, **more):
        return train_language_model(
            corpus, vocabulary, options, tmp_path / path, verbose=0, **more
        )

    with pytest.raises(KeyboardInterrupt):
        run("cut", callbacks=[Interrupt(steps)])
    assert read_meta(tmp_path / "cut" / "checkpoint.npz")["step"] == steps - 1
    run("cut", resume=True)
    run("whole")
    whole, cut = (final_weights(tmp_path / n) for n in ("whole", "cut"))
    for name, value in whole.items():
        assert np.abs(np.float64(cut[name]) - value).max(initial=0) < 1e-6, name


@pytest.mark.parametrize(
    "policy", ["mixed_float16", "bfloat16", *["mixed_bfloat16"][:FULL]]
)
def test_mixed_precision_resumes(small_ptb, tmp_path, policy):
    """Loss scales are kept, and values of types that NumPy does not have."""
    corpus = load_corpus(data_dir=small_ptb)
    vocabulary = Vocabulary.build(corpus.train)
    averages = {"weight_average": 0.9, "dtype_policy": policy}
    options = TrainingOptions(**TINY, **averages, epochs=1)
    train_language_model(
        corpus, vocabulary, options, tmp_path / "whole", verbose=0, resume=True
    )
    with pytest.raises(KeyboardInterrupt):
        train_language_model(
            corpus, vocabulary, options, tmp_path / "cut", verbose=0,
            callbacks=[Interrupt(9)],
        )  # fmt: skip
    train_language_model(
        corpus, vocabulary, options, tmp_path / "cut", verbose=0, resume=True
    )
    whole, cut = (final_weights(tmp_path / n) for n in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    for name, value in whole.items():
        assert np.abs(np.float64(cut[name]) - value).max(initial=0) < 1e-3, name
    model = keras.saving.load_model(tmp_path / "cut" / "model.keras")
    assert model.dtype_policy.name == policy
    assert model.recurrent[0].compute_dtype == policy.removeprefix("mixed_")
    assert keras.config.dtype_policy().name == "float32"


@once
def test_resume_with_another_corpus(small_ptb, tmp_path):
    corpus = load_corpus(data_dir=small_ptb)
    vocabulary = Vocabulary.build(corpus.train)
    options = TrainingOptions(**TINY, epochs=1)
    train_language_model(corpus, vocabulary, options, tmp_path, verbose=0)
    before = (tmp_path / "vocabulary.json").read_bytes()
    (tmp_path / ".checkpoint.npz.unfinished-x.npz").write_text("half")
    other = replace(corpus, train=corpus.train[::-1])
    with pytest.raises(ValueError, match=r"`resume`: the run in .* has data="):
        train_language_model(other, vocabulary, options, tmp_path, resume=True)
    assert (tmp_path / "vocabulary.json").read_bytes() == before
    train_language_model(corpus, vocabulary, options, tmp_path, resume=True)
    assert [file.name for file in tmp_path.glob(".*")] == [".lock"]


@once
def test_sizes_larger_than_the_corpus(small_ptb, tmp_path, capsys):
    data = arguments(data_dir=small_ptb, save_path=tmp_path / "run")
    assert train_lm.main([*data, *arguments(**TINY | {"seq_len": 10**6})]) == 2
    error = capsys.readouterr().err
    assert "Option `seq_len` must be at most" in error and ", batch_size=" in error
    many = arguments(**TINY | {"sampled_words": 10**6})
    assert train_lm.main([*data, *many]) == 2
    error = capsys.readouterr().err
    assert "Option `sampled_words` must be at most" in error
    assert not (tmp_path / "run").exists()
    assert train_lm.main([*data, "--config", "missing.json"]) == 2
    assert "Option `config` cannot be read" in capsys.readouterr().err


@once
def test_divergence_in_the_first_epoch(small_ptb, tmp_path, capsys):
    data = arguments(data_dir=small_ptb, save_path=tmp_path, epochs=1, **TINY)
    assert train_lm.main([*data, "--learning_rate", "1e30", "--grad_clip", "1e30"]) == 2
    assert "Training diverged in its first epoch" in capsys.readouterr().err


@once
def test_checkpoint_from_before_an_option_was_added(small_ptb, tmp_path):
    corpus = load_corpus(data_dir=small_ptb)
    vocabulary = Vocabulary.build(corpus.train)
    options = TrainingOptions(**TINY, epochs=1)
    train_language_model(corpus, vocabulary, options, tmp_path, verbose=0)
    path = tmp_path / "checkpoint.npz"
    model = build_language_model(options, len(vocabulary))
    meta = load_checkpoint(path, model)
    for name in ("tied", "weight_average", "data"):
        del meta["options"][name]
    save_checkpoint(path, model, meta)
    options = TrainingOptions(**TINY, epochs=2)
    run = {"resume": True, "verbose": 0}
    train_language_model(corpus, vocabulary, options, tmp_path, **run)
    options = TrainingOptions(**TINY, epochs=2, weight_average=0.5)
    with pytest.raises(ValueError, match=r"weight_average=0\.0\. Received: .*=0\.5"):
        train_language_model(corpus, vocabulary, options, tmp_path, **run)


@once
def test_presets(tmp_path):
    def options(*given):
        return train_lm.options_from(train_lm.parser().parse_args(given))

    assert options("--preset", "paper") == options() == TrainingOptions()
    awd = options("--preset", "awd")
    assert (awd.tied, awd.locked_dropout, awd.layers) == (True, True, 4)
    assert awd.windows == [2, 1, 1, 1]
    changed = options("--preset", "awd", "--notied", "--first_qrnn_k", "3")
    assert not changed.tied and changed.windows == [3, 1, 1, 1]
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"tied": False, "first_qrnn_k": None}))
    changed = options("--preset", "awd", "--config", str(path))
    assert not changed.tied and changed.windows == 1
    assert options("--hidden_dropout", "0.25").hidden_dropout == 0.25


@once
def test_cache(trained, small_ptb, capsys):
    data = arguments(data_dir=small_ptb, save_path=trained)
    assert train_lm.main([*data, "--notrain", "--cache", "300"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "valid perplexity", "valid perplexity with the cache",
        "test perplexity", "test perplexity with the cache",
    ]  # fmt: skip
    chosen = [line.partition("(")[2] for line in lines if "cache" in line]
    assert chosen[0] == chosen[1] and chosen[0].startswith("size 300, theta ")
    assert train_lm.main([*data, "--notrain", "--cache", "-1"]) == 2
    assert "`cache` must be a positive integer" in capsys.readouterr().err


@once
def test_resume_without_a_checkpoint_starts(small_ptb, tmp_path, capsys):
    data = arguments(data_dir=small_ptb, save_path=tmp_path, **TINY, epochs=1)
    assert train_lm.main([*data, "--resume", "--notest"]) == 0
    assert f"{tmp_path} holds no run to go on with" in capsys.readouterr().out


@once
def test_a_run_is_not_overwritten(trained, small_ptb, capsys):
    before = (trained / "checkpoint.npz").read_bytes()
    data = arguments(data_dir=small_ptb, save_path=trained)
    assert train_lm.main([*data, *arguments(**TINY, epochs=2)]) == 2
    assert "holds a run already. Use --resume" in capsys.readouterr().err
    changed = arguments(**(TINY | {"units": 9}), epochs=2)
    assert train_lm.main([*data, *changed, "--resume"]) == 2
    error = capsys.readouterr().err
    assert "units=8. Received: units=9" in error
    # Another rate in the second epoch; one in the third would be allowed.
    rates = arguments(**TINY, epochs=2, constant_epochs=1)
    assert train_lm.main([*data, *rates, "--resume"]) == 2
    error = capsys.readouterr().err
    assert "constant_epochs=6. Received: constant_epochs=1" in error
    shorter = [*data, *arguments(**TINY, epochs=1), "--resume"]
    assert train_lm.main(shorter) == 2
    assert "has begun 2 epochs already. Received: epochs=1" in capsys.readouterr().err
    assert (trained / "checkpoint.npz").read_bytes() == before


@once
def test_interrupted_write_leaves_the_old_file(tmp_path):
    from keras_qrnn._files import atomic_write

    path = tmp_path / "file.txt"
    path.write_text("old")

    def write_and_fail():
        with atomic_write(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write_and_fail()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]


@once
@pytest.mark.parametrize("damage", ["truncate", "foreign", "empty", "other_model"])
def test_bad_checkpoints(tmp_path, damage):
    options = TrainingOptions(**TINY)
    model = build_language_model(options, 20)
    path = tmp_path / "checkpoint.npz"
    save_checkpoint(path, model, {"epoch": 0, "step": 0, "history": [], "options": {}})
    if damage == "truncate":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "foreign":
        np.savez(path, x=np.ones(3))
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        model = build_language_model(options, 21)
    before = [keras.ops.convert_to_numpy(v) for v in model.variables]
    with pytest.raises(ValueError, match=r"checkpoint.* of (this|another) model"):
        load_checkpoint(path, model)
    for variable, value in zip(model.variables, before, strict=True):
        assert np.array_equal(keras.ops.convert_to_numpy(variable), value)


@once
def test_checkpoint_of_fewer_layers(tmp_path):
    options = {**TINY, "layers": 1}
    path = tmp_path / "checkpoint.npz"
    save_checkpoint(path, build_language_model(TrainingOptions(**options), 20), {})
    with pytest.raises(ValueError, match="not a whole checkpoint of this model"):
        load_checkpoint(path, build_language_model(TrainingOptions(**TINY), 20))


@once
def test_save_path_that_cannot_be_written(small_ptb, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    data = arguments(data_dir=small_ptb, save_path=tmp_path / "file" / "run", **TINY)
    assert train_lm.main([*data, "--epoch", "1"]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err


@once
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "`epochs` must be a positive integer"),
        ({"learning_rate": -1}, "`learning_rate` must be positive"),
        ({"grad_clip": 0}, "`grad_clip` must be positive"),
        ({"weight_decay": -1}, "`weight_decay` must not be negative"),
        (
            {"optimizer": "lion"},
            r"`optimizer` must be one of sgd, adamw, rmsprop\. Received",
        ),
        ({"weight_average": 1}, r"`weight_average` must be in \[0, 1\)"),
        ({"constant_epochs": 0}, "`constant_epochs` must be a positive integer"),
        ({"dropout": 1}, "dropout"),
        ({"zoneout": 1}, r"`zoneout` must be in \[0, 1\)"),
        ({"window": 0}, "`window` must be a positive integer"),
        ({"pooling": "x"}, "`pooling` must be one of"),
        ({"batch_size": 10**6}, "must have at least batch_size"),
        ({"data_dir": "nowhere"}, "`data_dir` must be a directory"),
        ({"vocab_size": 1}, "`vocab_size` must be an integer of at least 2"),
    ],
)
def test_bad_options(small_ptb, tmp_path, capsys, options, message):
    base = {"data_dir": small_ptb, "save_path": tmp_path / "run", **TINY}
    assert train_lm.main(arguments(**(base | options))) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


@once
def test_config_file(small_ptb, tmp_path, capsys):
    path = tmp_path / "best.json"
    path.write_text(json.dumps({"qrnn_size": 12, "zoneout": 0.3}))
    parsed = train_lm.parser().parse_args(["--config", str(path), "--zoneout", "0.2"])
    options = train_lm.options_from(parsed)
    assert (options.units, options.zoneout) == (12, 0.2)
    for content in ('{"colour": 1}', "[1]", "{", '{"learning_rate": "fast"}'):
        path.write_text(content)
        data = arguments(data_dir=small_ptb, save_path=tmp_path / "r", config=path)
        assert train_lm.main(data) == 2
        assert "Option `config`" in capsys.readouterr().err


@once
def test_vocabulary_that_does_not_fit(trained, small_ptb, tmp_path, capsys):
    for name in ("model.keras", "vocabulary.json"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    words = Vocabulary.load(trained / "vocabulary.json").words
    Vocabulary([*words, "extra"]).save(tmp_path / "vocabulary.json")
    data = arguments(data_dir=small_ptb, save_path=tmp_path)
    assert train_lm.main([*data, "--notrain"]) == 2
    assert "does not fit the model" in capsys.readouterr().err
    assert sample_lm.main(arguments(load_path=tmp_path)) == 2
    assert "does not fit the model" in capsys.readouterr().err
    assert train_lm.main(["--notrain", *arguments(
        data_dir=small_ptb, save_path=tmp_path / "nothing")]) == 2  # fmt: skip
    assert "/nothing, which does not exist" in capsys.readouterr().err


# Sampling


def test_sample(trained, tmp_path, capsys):
    options = arguments(load_path=trained, save_path=tmp_path, num_words=30, seed=3)
    options += arguments(first_word="the", temperature=0.8, out_filename="text.txt")
    assert sample_lm.main([*options, "--plot_gates"]) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "text.txt").read_text() == printed
    assert printed.startswith("the ")
    assert (tmp_path / "gates.png").read_bytes().startswith(b"\x89PNG")
    assert sample_lm.main(options) == 0
    assert capsys.readouterr().out == printed


def test_sampling_carries_the_state(trained):
    """One step at a time gives the same logits as the whole text."""
    model = keras.saving.load_model(trained / "model.keras").with_batch_size(1)
    ids = generate(model, 1, 12, 1e-6, np.random.default_rng(0))
    model.reset_state()
    whole = keras.ops.convert_to_numpy(model(np.array([ids])))[0]
    assert [int(n) for n in whole.argmax(-1)[:-1]] == ids[1:]
    gates = layer_gates(model, ids)
    assert list(gates) == ["qrnn_0", "qrnn_1"]
    assert all(list(layer) == ["z", "f", "o"] for layer in gates.values())
    shapes = {gate.shape for layer in gates.values() for gate in layer.values()}
    assert shapes == {(12, 8)}


@once
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, "`temperature` must be positive"),
        ({"num_words": 0}, "`num_words` must be a positive integer"),
        ({"first_word": "zebra"}, "`first_word` must be a word of the vocabulary"),
        ({"load_path": "nowhere"}, "`load_path` must be a directory"),
        ({"out_filename": "states.png"}, "another file than those of the run"),
        ({"out_filename": "gates.png"}, "another file than those of the run"),
        ({"out_filename": "x/../.lock"}, "another file than those of the run"),
        ({"out_filename": "translations/a"}, "another file than those of the run"),
    ],
)
def test_bad_sampling_options(trained, tmp_path, capsys, options, message):
    base = {"load_path": trained, "save_path": tmp_path}
    assert sample_lm.main(arguments(**(base | options))) == 2
    assert message in capsys.readouterr().err


@once
def test_sampling_without_a_run_names_those_that_are_there(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert sample_lm.main([]) == 2
    assert "`load_path` must be given" in (error := capsys.readouterr().err)
    assert error.endswith("working directory: none\n")
    for name in ("lm-b", "lm-a", "unfinished"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vocabulary.json").touch()
        if name != "unfinished":
            (tmp_path / name / "model.keras").touch()
    assert sample_lm.main([]) == 2
    assert capsys.readouterr().err.endswith("working directory: lm-a, lm-b\n")


@once
def test_train_language_model_returns_the_history(small_ptb, tmp_path):
    corpus = load_corpus(data_dir=small_ptb)
    vocabulary = Vocabulary.build(corpus.train)
    options = TrainingOptions(**TINY, epochs=1)
    history = train_language_model(
        corpus, vocabulary, options, tmp_path / "run", verbose=0
    )
    assert len(history) == 1 and history[0]["val_perplexity"] > 1


# One line, and nothing lost


@once
def test_event_files_have_every_epoch_of_the_log(small_ptb, tmp_path):
    """The file may also be one that was not yet written at the kill."""
    corpus = load_corpus(data_dir=small_ptb)
    vocabulary = Vocabulary.build(corpus.train[:60])
    corpus = replace(corpus, train=corpus.train[:60], valid=corpus.valid[:9])

    def run(epochs):
        options = TrainingOptions(**TINY, epochs=epochs)
        train_language_model(
            corpus, vocabulary, options, tmp_path, verbose=0, resume=True
        )

    run(2)
    shutil.rmtree(tmp_path / "logs")
    run(3)
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = scalars(tmp_path / "logs", "val_perplexity")
    assert found == pytest.approx(
        {int(row["epoch"]) - 1: float(row["val_perplexity"]) for row in rows}
    )
    run(4)
    assert list(scalars(tmp_path / "logs", "loss")) == [0, 1, 2, 3]


def scalars(directory, tag):
    """The values of `tag` for each step, as TensorBoard shows them."""
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for path in sorted(directory.iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + size])
            at += 12 + size + 4
            if event.HasField("session_log"):  # a start hides what came at or after it
                found = {n: value for n, value in found.items() if n < event.step}
            for value in event.summary.value:
                if value.tag == tag:
                    found[event.step] = value.simple_value
    return found


@once
@pytest.mark.parametrize("split", ["valid", "test"])
def test_an_unknown_word_is_found_before_the_first_epoch(tmp_path, split, capsys):
    data, run = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    for name in ("train", "valid", "test"):
        last = "zebra\n" if name == split else ""
        (data / f"{name}.txt").write_text("the cat sat on the mat\n" * 40 + last)
    options = [*arguments(data_dir=data, save_path=run, **TINY), "--seq_len", "10"]
    assert train_lm.main(options) == 2
    error = capsys.readouterr().err
    assert f"In the {split} split: The word 'zebra' is not in" in error
    assert not run.exists()


@once
def test_names_of_runs():
    """Other recipes and other data have other directories."""

    def name(*given):
        parsed = train_lm.parser().parse_args(given)
        return str(train_lm.save_path_of(parsed, train_lm.options_from(parsed)))

    sample = ["--dataset", "sample", "--config", str(ROOT / "examples/sample.json")]
    found = [
        name(),
        name("--data_dir", "somewhere/ptb"),
        name(*sample),
        name("--lstm"),
        name("--preset", "awd"),
        name("--preset", "awd", "--finetune", "lm-qrnn_awd"),
        name("--dataset", "sample", "--preset", "awd"),
    ]
    assert found[:3] == ["lm-qrnn_model", "lm-qrnn_ptb", "lm-qrnn_sample"]
    assert len(set(found)) == len(found)
    assert name("--save_path", "x", *sample) == "x"


@once
def test_older_spellings_are_the_same_options():
    older = ["--epoch", "3", "--qrnn_size", "5", "--qrnn_layers", "1"]
    older += ["--qrnn_k", "4", "--first_qrnn_k", "3"]
    newer = ["--epochs", "3", "--units", "5", "--layers", "1"]
    newer += ["--window", "4", "--first_window", "3"]
    found = [
        train_lm.options_from(train_lm.parser().parse_args(o)) for o in (older, newer)
    ]
    assert found[0] == found[1]
    assert found[0] == TrainingOptions(
        epoch=3, qrnn_size=5, qrnn_layers=1, qrnn_k=4, first_qrnn_k=3
    )
    with pytest.raises(ValueError, match="`epochs` and `epoch` are the same option"):
        TrainingOptions(epochs=3, epoch=3)


@once
def test_replace_takes_older_names():
    options = TrainingOptions(qrnn_size=8, seed=3)
    changed = replace(options, qrnn_size=9, epoch=2)
    assert changed == replace(options, units=9, epochs=2)
    assert replace(options, units=9) != options
    with pytest.raises(ValueError, match="`units` and `qrnn_size` are the same"):
        replace(options, units=9, qrnn_size=10)
    with pytest.raises(ValueError, match="`qrnn_size` and `units` are the same"):
        TrainingOptions(qrnn_size=9, units=10)


@once
def test_a_checkpoint_with_older_spellings_goes_on(small_ptb, tmp_path):
    corpus = load_corpus(data_dir=small_ptb)
    corpus = replace(corpus, train=corpus.train[:60], valid=corpus.valid[:9])
    vocabulary = Vocabulary.build(corpus.train)
    run = {"resume": True, "verbose": 0}
    options = TrainingOptions(**TINY, epochs=1)
    train_language_model(corpus, vocabulary, options, tmp_path, **run)
    path = tmp_path / "checkpoint.npz"
    model = build_language_model(options, len(vocabulary))
    meta = load_checkpoint(path, model)
    older = {"epochs": "epoch", "units": "qrnn_size", "layers": "qrnn_layers"}
    older |= {"window": "qrnn_k", "first_window": "first_qrnn_k"}
    meta["options"] = {older.get(n, n): v for n, v in meta["options"].items()}
    assert meta["options"]["qrnn_size"] == 8 and "units" not in meta["options"]
    save_checkpoint(path, model, meta)
    with pytest.raises(ValueError, match=r"has units=8\. Received: units=9"):
        other = replace(options, units=9)
        train_language_model(corpus, vocabulary, other, tmp_path, **run)
    options = replace(options, epochs=2)
    history = train_language_model(corpus, vocabulary, options, tmp_path, **run)
    assert len(history) == 2


@once
def test_finetune_is_the_same_run_from_any_directory(
    trained, small_ptb, tmp_path, monkeypatch
):
    corpus = load_corpus(data_dir=small_ptb)
    vocabulary = Vocabulary.build(corpus.train)
    options = TrainingOptions(**TINY, epochs=1)

    def record(source):
        changed = replace(options, finetune=source)
        return LanguageModelling(corpus, vocabulary, changed).record()

    expected = record(str(trained))
    monkeypatch.chdir(trained)
    assert record(".") == expected
    monkeypatch.chdir(tmp_path)
    assert record(os.path.relpath(trained)) == expected


@once
def test_a_run_can_be_silent(small_ptb, tmp_path, capfd):
    """It prints its result and nothing else."""
    data = arguments(data_dir=small_ptb, save_path=tmp_path / "run", **TINY, epochs=1)
    assert train_lm.main([*data, "--verbose", "0"]) == 0
    printed = capfd.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in printed] == [
        "valid perplexity", "test perplexity"
    ]  # fmt: skip
    assert (tmp_path / "run" / "run.json").exists()


@once
def test_an_interrupt_is_one_line(small_ptb, tmp_path, capsys, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(command_line, "train_experiment", interrupted)
    data = arguments(data_dir=small_ptb, save_path=tmp_path / "run", **TINY)
    assert train_lm.main(data) == 130
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "train_lm.py: interrupted. " in error
    assert "--resume" in error


@once
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"learning_rate": 1e30, "grad_clip": 1e30, "weight_decay": 0.0},
            "a smaller --learning_rate or --grad_clip. Received",
        ),
        (
            {"weight_decay": 1e4},
            "a smaller --learning_rate or --weight_decay. ",
        ),
        (
            {"embedding_scale": 1e20, "tied": True},
            "a smaller --embedding_scale. Received: embedding_scale=1e+20",
        ),
        (
            {"embedding_scale": 3e4, "tied": True, "dtype_policy": "float16"},
            "--embedding_scale, or a --dtype_policy of a wider range",
        ),
    ],
)
def test_advice_fits_the_cause_of_divergence(small_ptb, options, expected):
    corpus = load_corpus(data_dir=small_ptb)
    options = TrainingOptions(**(TINY | options))
    vocabulary = Vocabulary.build(corpus.train)
    assert expected in LanguageModelling(corpus, vocabulary, options).why_diverged()


@once
@pytest.mark.parametrize("temperature", [1e-3, 1e-300, 1e-320])
def test_the_likeliest_word_at_tiny_temperatures(temperature):
    class Model:
        batch_size = 1

        def reset_state(self):
            pass

        def predict_on_batch(self, ids):
            return np.array([[[1.0, 2.0, 3.0]]], "float32")

    ids = generate(Model(), 0, 5, temperature, np.random.default_rng(0))
    assert ids == [0, 2, 2, 2, 2]


@once
def test_bad_arguments_of_generate():
    model = LanguageModel(5, 4, 3, 1, batch_size=2)
    good = {"first_id": 0, "num_words": 3, "temperature": 1.0, "rng": None}
    bad = {"first_id": -1, "num_words": 0, "temperature": 0.0}
    for name, value in bad.items():
        with pytest.raises(ValueError, match=f"`{name}` must be"):
            generate(model, **good | {name: value})
    with pytest.raises(ValueError, match=r"`model` must have a batch size of 1.*=2"):
        generate(model, **good)
    with pytest.raises(ValueError, match=r"`model` must have a batch size of 1.*=2"):
        layer_gates(model, [0])


@once
@pytest.mark.parametrize("name", ["train_lm", "sample_lm"])
def test_without_docstrings(name):
    """`python -OO` takes docstrings and assertions away."""
    path = ROOT / "examples" / f"{name}.py"
    code = compile(path.read_text("utf-8"), path, "exec", optimize=2)
    names = {"__name__": name}
    exec(code, names)
    assert names.get("__doc__") is None
    assert "--save_path" in names["parser"]().format_help()
