"""Training of a language model: its model, its batches and its checks."""

import math
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import keras

from keras_qrnn._files import reading
from keras_qrnn.data import BPTTBatches, Corpus, Vocabulary, fingerprint
from keras_qrnn.models import LanguageModel
from keras_qrnn.ops.equations import GATES
from keras_qrnn.training.callbacks import (
    AverageAfterStall,
    BatchesOfTheEpoch,
    LoggedRate,
    Validation,
    learning_rate_at,
    learning_rate_schedule,
)
from keras_qrnn.training.evaluation import Evaluator, kept_model
from keras_qrnn.training.loop import train
from keras_qrnn.training.objective import Objective
from keras_qrnn.training.optimizers import SGD, AdamW
from keras_qrnn.training.options import (
    TrainingOptions,
    defaults_of,
    with_current_names,
)
from keras_qrnn.training.plots import Panel
from keras_qrnn.training.run_directory import (
    DOING,
    RunDirectory,
    first_difference,
    held,
    refuse_if_held,
)
from keras_qrnn.training.schedules import OneCycle

OBJECTIVE = Objective("val_perplexity", "min")
# The options that decide each epoch's learning rate: see `learning_rate_at`.
SCHEDULE = ("learning_rate", "learning_rate_decay", "constant_epochs")
# The options that a resumed run may change.
FREE = ("epochs", "save_every", "early_stopping")
PANELS = (
    Panel(
        "loss (nats per token)",
        {
            "training": lambda row: math.log(row["perplexity"]),
            "validation": lambda row: math.log(row["val_perplexity"]),
        },
    ),
    Panel(
        "perplexity",
        {
            "training": lambda row: row["perplexity"],
            "validation": lambda row: row["val_perplexity"],
        },
        log=True,
    ),
)


def build_language_model(
    options: TrainingOptions,
    vocab_size: int,
    steps_per_epoch: int | None = None,
    vocabulary: str | None = None,
) -> LanguageModel:
    """The model of `options`, built and compiled with the optimizer of `options`.

    Args:
        options: the recipe.
        vocab_size: number of words.
        steps_per_epoch: number of batches of an epoch. A one-cycle schedule needs it.
        vocabulary: fingerprint of the vocabulary, saved with the model.

    Raises:
        ValueError: if a one-cycle schedule gets no `steps_per_epoch`.
    """
    model = LanguageModel(
        vocab_size,
        emb_dim=options.emb_dim,
        units=options.units,
        layers=options.layers,
        batch_size=options.batch_size,
        window=options.windows,
        pooling=options.pooling,
        zoneout=options.zoneout,
        dropout=options.dropout,
        cell=options.cell,
        embedding_scale=options.embedding_scale,
        tied=options.tied,
        locked_dropout=options.locked_dropout,
        embedding_dropout=options.embedding_dropout,
        hidden_dropout=options.hidden_dropout,
        kernel_dropout=options.kernel_dropout,
        activation_regularization=options.activation_regularization,
        temporal_regularization=options.temporal_regularization,
        seed=options.seed,
        vocabulary=vocabulary,
        dtype=options.dtype_policy,
    )
    model.build()
    model.compile(build_optimizer(options, steps_per_epoch))
    # With mixed_float16 the optimizer is a wrapper with variables of its own.
    model.optimizer.build(model.trainable_variables)
    return model


def build_optimizer(
    options: TrainingOptions, steps_per_epoch: int | None = None
) -> keras.optimizers.Optimizer:
    """The optimizer of `options`: see `build_language_model` for the arguments."""

    one_cycle = options.schedule == "one_cycle"
    if one_cycle and steps_per_epoch is None:
        raise ValueError(
            "A one-cycle schedule needs the batches of an epoch. "
            "Received: steps_per_epoch=None"
        )

    def cycle(peak: float, ends: float | None = None) -> OneCycle:
        return OneCycle(
            peak,
            options.epochs * (steps_per_epoch or 0),
            ends,
            ends,
            rise=options.cycle_rise,
            hold=options.cycle_hold,
            anneal=options.cycle_anneal,
        )

    rate = options.learning_rate
    common: dict[str, Any] = {
        "learning_rate": cycle(rate) if one_cycle else rate,
        "global_clipnorm": options.grad_clip,
        "use_ema": bool(options.weight_average),
        "ema_momentum": options.weight_average,
        "triggered_average": bool(options.average_trigger),
    }
    # Keras multiplies the weight decay by the learning rate and does not clip it.
    if options.optimizer == "sgd":
        return SGD(weight_decay=options.weight_decay or None, **common)
    beta_1: float | OneCycle = options.beta_1
    if one_cycle and options.cycle_beta_1 is not None:
        beta_1 = cycle(options.cycle_beta_1, ends=options.beta_1)
    return AdamW(
        weight_decay=options.weight_decay,
        beta_1=beta_1,
        beta_2=options.beta_2,
        **common,
    )


def train_language_model(
    corpus: Corpus,
    vocabulary: Vocabulary,
    options: TrainingOptions,
    save_path: str | os.PathLike,
    resume: bool = False,
    callbacks: list[keras.callbacks.Callback] | None = None,
    verbose: int | str = "auto",
) -> list[dict]:
    """Trains a language model and keeps the best by validation in `save_path`.

    All arguments are checked first. A call that is refused writes nothing.

    Args:
        corpus: the text. The training and validation splits are used.
        vocabulary: the vocabulary of the training split.
        options: the recipe.
        save_path: the run directory: see `RunFiles` for its files.
        resume: whether to resume from the checkpoint in `save_path`. The run then ends
            with the same weights as a run that was never interrupted.
        callbacks: further Keras callbacks, called after the run's files are written.
        verbose: as in `keras.Model.fit`.

    Returns:
        The logs of each epoch.

    Raises:
        FileExistsError: if `save_path` holds a run and `resume` is False.
        ValueError: if the checkpoint is damaged or belongs to a run with other
            options; if the model to finetune has other shapes or another vocabulary;
            if the options do not fit the corpus or the machine.
        OSError: if `save_path` cannot be written, or another process trains in it.
    """
    run = RunDirectory(Path(save_path))
    record = run_record(corpus, vocabulary, options)

    def difference(meta: dict) -> str | None:
        return _difference(meta, record)

    refuse_if_held(run.path, DOING)
    goes_on = run.check(difference, resume)
    train_ids = vocabulary.encode(corpus.train, "training")
    valid_ids = vocabulary.encode(corpus.valid, "validation")
    check_sizes(options, len(vocabulary), len(train_ids))
    start, finetune = None, options.finetune
    if finetune is not None and not goes_on:
        start = load_trained(finetune, "finetune")
        _check_vocabulary(Path(finetune), start[1], vocabulary)

    keras.utils.set_random_seed(options.seed)
    batches = BPTTBatches(
        train_ids,
        options.batch_size,
        options.seq_len,
        lengths_seed=options.seed if options.random_lengths else None,
    )
    model = build_language_model(
        options, len(vocabulary), len(batches), vocabulary.fingerprint
    )
    if start is not None and finetune is not None:
        _take_weights(Path(finetune), start[0], model)
    evaluator = Evaluator(model, valid_ids, options.eval_steps)

    def validate() -> dict[str, float]:
        perplexity = evaluator()
        return {"val_perplexity": perplexity, "val_loss": math.log(perplexity)}

    history: list[dict] = []

    def batches_from(step: int) -> Any:
        batches.start = step
        return batches.for_fit()

    with held(run.path, DOING):
        # Checked again: now no other process can write there.
        goes_on = run.check(difference, resume)
        vocabulary.save(run.path / "vocabulary.json")
        return train(
            model,
            batches_from,
            run,
            OBJECTIVE,
            record,
            goes_on=goes_on,
            epochs=options.epochs,
            save_every=options.save_every,
            patience=options.early_stopping,
            callbacks=[
                BatchesOfTheEpoch(batches),
                _rate_callback(options),
                Validation(validate),
                *_average_callbacks(options, history),
            ],
            history=history,
            last_callbacks=callbacks or [],
            kept=kept_model,
            panels=PANELS,
            verbose=verbose,
        )


def _average_callbacks(
    options: TrainingOptions, history: list[dict]
) -> list[keras.callbacks.Callback]:
    if not options.average_trigger:
        return []
    return [AverageAfterStall(OBJECTIVE.name, options.average_trigger, history)]


def _rate_callback(options: TrainingOptions) -> keras.callbacks.Callback:
    if options.schedule == "one_cycle":
        return LoggedRate()  # the optimizer holds the schedule
    return learning_rate_schedule(
        options.learning_rate, options.learning_rate_decay, options.constant_epochs
    )


def why_diverged(
    corpus: Corpus, vocabulary: Vocabulary, options: TrainingOptions
) -> str:
    """Advice after a run whose loss was not finite from the first epoch on.

    One step is tried with a learning rate near 0. If the perplexity is then not finite,
    the initial weights are the cause. Otherwise the learning rate is the cause, or the
    weight decay: weights grow if learning rate times weight decay is above 1.

    Returns:
        A sentence with the options to change and what was received.
    """
    keras.utils.set_random_seed(options.seed)
    still = replace(options, learning_rate=1e-30, schedule="decay", weight_average=0.0)
    model = build_language_model(still, len(vocabulary))
    train_ids = vocabulary.encode(corpus.train)
    batches = BPTTBatches(train_ids, options.batch_size, options.seq_len)
    tokens, targets, weights = batches[0]
    model.train_on_batch(tokens, targets, weights)
    logs = model.test_on_batch(tokens, targets, weights, return_dict=True)
    names = ["learning_rate", "grad_clip"]
    what = "The first batch is predicted with a finite perplexity"
    if not math.isfinite(logs["perplexity"]):
        names = ["embedding_scale"]
        what = "The first batch is predicted with no finite perplexity"
    elif options.learning_rate * options.weight_decay > 1:
        names = ["learning_rate", "weight_decay"]
    if options.dtype_policy in ("float16", "mixed_float16"):
        names.append("dtype_policy")
    received = ", ".join(f"{name}={getattr(options, name)!r}" for name in names)
    others = "a smaller --" + " or --".join(n for n in names if n != "dtype_policy")
    if "dtype_policy" in names:
        others += ", or a --dtype_policy of a wider range"
    return f"{what}: expected {others}. Received: {received}"


def run_record(
    corpus: Corpus, vocabulary: Vocabulary, options: TrainingOptions
) -> dict[str, Any]:
    """The options, the data and the backend. Two runs are the same if all are equal."""
    record = asdict(options)
    if options.finetune is not None:
        # An absolute path is the same from any working directory.
        record["finetune"] = str(Path(options.finetune).resolve())
    record["vocabulary"] = len(vocabulary)
    record["data"] = fingerprint(vocabulary.words, corpus.train, corpus.valid)
    record["backend"] = keras.config.backend()  # backends draw different random numbers
    return record


def _difference(meta: dict, expected: dict) -> str | None:
    """How a checkpoint's run differs from the run to start. None if it does not."""
    found = with_current_names(meta["options"])
    # An option that an old checkpoint lacks was added later: its default was in use.
    added = {name: expected[name] for name in ("data", "backend")}
    found = defaults_of() | added | found
    free = set(FREE)
    begun = len(meta["history"]) + bool(meta["step"])
    # The rates of one cycle depend on the number of epochs.
    if begun and expected["schedule"] == "one_cycle":
        free -= {"epochs"}
    # The learning rates of later epochs may change.
    elif all(
        _learning_rate(found, epoch) == _learning_rate(expected, epoch)
        for epoch in range(begun)
    ):
        free |= set(SCHEDULE)
    if found["finetune"] is not None:
        # Old checkpoints hold the path as the user spelled it.
        found["finetune"] = str(Path(found["finetune"]).resolve())
    name = first_difference(found, expected, free)
    if name is not None:
        return f"{name}={found.get(name)!r}. Received: {name}={expected.get(name)!r}"
    if begun > expected["epochs"]:
        return f"begun {begun} epochs already. Received: epochs={expected['epochs']}"
    return None


def _learning_rate(options: dict, epoch: int) -> float:
    return learning_rate_at(epoch, *(options[name] for name in SCHEDULE))


def check_sizes(options: TrainingOptions, vocab_size: int, tokens: int) -> None:
    """Refuses options that do not fit the corpus or the machine. Allocates nothing.

    Args:
        options: the recipe.
        vocab_size: words of the vocabulary.
        tokens: tokens of the training split.

    Raises:
        ValueError: if there are fewer targets than rows; if `seq_len` is larger than
            the number of targets of a row; if the weights, or the logits of a batch,
            need more memory than the machine has.
    """
    targets = tokens - 1
    if targets < options.batch_size:
        raise ValueError(
            "The training split must have at least batch_size + 1 = "
            f"{options.batch_size + 1} tokens. Received: {tokens} tokens"
        )
    row = -(-targets // options.batch_size)
    if options.seq_len > row:
        raise ValueError(
            f"Option `seq_len` must be at most {row}, the tokens of the training split "
            f"for each row of a batch. Received: seq_len={options.seq_len}"
        )
    # Bytes in float32. The logits are the largest tensor of a batch.
    logits = 4 * options.batch_size * options.seq_len * vocab_size
    weights = 4 * count_weights(options, vocab_size)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    needs = {
        "`units`, `layers`, `window` and `emb_dim`: the weights": weights,
        "`batch_size` and `seq_len`: the logits of a batch": logits,
    }
    for what, needed in needs.items():
        if needed > memory:
            raise ValueError(
                f"Options {what} must fit in the memory of this machine, "
                f"{memory / 2**30:.1f} GiB. Received: {needed / 2**30:.3g} GiB"
            )


def count_weights(options: TrainingOptions, vocab_size: int) -> int:
    """Number of weights of the model of `options`. The model is not built."""

    def layer(inputs: int, units: int, window: int) -> int:
        if options.cell == "qrnn":
            gates = len(GATES[options.pooling])
            return gates * units * (window * inputs + 1)
        return 4 * units * (inputs + units + 1)

    last = options.emb_dim if options.tied else options.units
    first_window = options.first_window or options.window
    total = options.emb_dim * vocab_size + vocab_size  # embedding, softmax's bias
    if not options.tied:
        total += last * vocab_size
    if options.layers == 1:
        return total + layer(options.emb_dim, last, first_window)
    total += layer(options.emb_dim, options.units, first_window)
    total += (options.layers - 2) * layer(options.units, options.units, options.window)
    return total + layer(options.units, last, options.window)


def load_trained(
    directory: str | os.PathLike, option: str
) -> tuple[LanguageModel, Vocabulary]:
    """The best model of a run, and its vocabulary.

    Args:
        directory: the run's `save_path`.
        option: the option's name in error messages.

    Raises:
        FileNotFoundError: if `model.keras` or `vocabulary.json` is missing.
        ValueError: if a file is damaged, or if the vocabulary does not fit the model.
    """
    directory = Path(directory)
    for name in ("model.keras", "vocabulary.json"):
        if not (directory / name).is_file():
            raise FileNotFoundError(
                f"Option `{option}` must be a directory that train_lm.py wrote. "
                f"Received: {directory}, which holds no {name}"
            )
    vocabulary = Vocabulary.load(directory / "vocabulary.json")
    path = directory / "model.keras"
    with reading(f"Option `{option}`: {path}", "a whole language model"):
        model = keras.saving.load_model(path, compile=False)
        if not isinstance(model, LanguageModel):
            raise TypeError(f"a {type(model).__name__}, not a LanguageModel")
    config = model.get_config()
    if config["vocabulary"] not in (None, vocabulary.fingerprint):
        raise ValueError(
            f"Option `{option}`: the vocabulary in {directory} does not fit the model. "
            "It has other words than the model was trained with, or another order"
        )
    expected = config["vocab_size"]
    if expected != len(vocabulary):
        raise ValueError(
            f"Option `{option}`: the vocabulary in {directory} does not fit the model. "
            f"Expected {expected} words. Received: {len(vocabulary)}"
        )
    return model, vocabulary


def _check_vocabulary(run: Path, found: Vocabulary, expected: Vocabulary) -> None:
    if found.words != expected.words:
        raise ValueError(
            f"Option `finetune`: the run in {run} has another vocabulary than that of "
            "this corpus"
        )


def _take_weights(run: Path, trained: LanguageModel, model: LanguageModel) -> None:
    found, expected = (
        {weight.path.partition("/")[2]: tuple(weight.shape) for weight in m.weights}
        for m in (trained, model)
    )
    if found != expected:
        raise ValueError(
            f"Option `finetune`: the model in {run} is not of these options. Expected "
            f"weights of shapes {expected}. Received: {found}"
        )
    model.copy_weights(trained.weights)
