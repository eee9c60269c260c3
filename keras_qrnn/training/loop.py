import math
import os
import zipfile
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

import keras
import numpy as np

from keras_qrnn._checks import positive_integer, rate
from keras_qrnn._files import remove_leftovers
from keras_qrnn.data import BPTTBatches, Corpus, Vocabulary, fingerprint
from keras_qrnn.models import LanguageModel
from keras_qrnn.training.callbacks import (
    CarriedState,
    RunFiles,
    Stopping,
    ValidationPerplexity,
    is_over,
    learning_rate_at,
    learning_rate_schedule,
)
from keras_qrnn.training.checkpoint import load_checkpoint, read_meta
from keras_qrnn.training.evaluation import Evaluator

OPTIMIZERS = {"sgd": keras.optimizers.SGD, "adamw": keras.optimizers.AdamW}
# The learning rate of each epoch is theirs: see `learning_rate_at`.
SCHEDULE = ("learning_rate", "learning_rate_decay", "constant_epochs")


@dataclass(frozen=True)
class TrainingOptions:
    """The recipe of a run; the defaults are those of arXiv 1611.01576, section 3.2.

    Other than by name the options differ from the arguments of `LanguageModel` in
    three: `first_qrnn_k` is the window of the first layer where it is another one;
    the learning rate falls after `constant_epochs`; and with a `weight_average`
    above 0 what is validated and kept are the moving averages of the weights, of
    which each step keeps that part. `finetune` names the `save_path` of a finished
    run whose kept weights this one starts from (arXiv 1708.02182, section 5).

    Raises:
        ValueError: if a value is out of its range.
    """

    cell: str = "qrnn"
    epoch: int = 72
    batch_size: int = 20
    seq_len: int = 105
    save_every: int = 100
    early_stopping: int = 0
    qrnn_size: int = 640
    qrnn_layers: int = 2
    qrnn_k: int = 2
    emb_dim: int = 650
    vocab_size: int = 10001
    pooling: str = "fo"
    zoneout: float = 0.1
    dropout: float = 0.5
    optimizer: str = "sgd"
    learning_rate: float = 1.0
    learning_rate_decay: float = 0.95
    constant_epochs: int = 6
    grad_clip: float = 10.0
    weight_decay: float = 2e-4
    embedding_scale: float = 1.0
    first_qrnn_k: int | None = None
    tied: bool = False
    locked_dropout: bool = False
    embedding_dropout: float = 0.0
    hidden_dropout: float | None = None
    weight_average: float = 0.0
    finetune: str | None = None
    seed: int = 0
    dtype_policy: str = "float32"

    def __post_init__(self) -> None:
        counts = ("epoch", "batch_size", "seq_len", "save_every", "constant_epochs")
        for name in counts:
            positive_integer(name, getattr(self, name), "Option")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(
                f"Option `optimizer` must be one of {', '.join(OPTIMIZERS)}. "
                f"Received: optimizer={self.optimizer!r}"
            )
        for name in ("learning_rate", "learning_rate_decay", "grad_clip"):
            value = getattr(self, name)
            if not (0 < value < math.inf):
                raise ValueError(
                    f"Option `{name}` must be positive. Received: {name}={value!r}"
                )
        patience = self.early_stopping
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 0:
            raise ValueError(
                "Option `early_stopping` must be 0 or a number of epochs. "
                f"Received: early_stopping={patience!r}"
            )
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(
                "Option `weight_decay` must not be negative. "
                f"Received: weight_decay={self.weight_decay!r}"
            )

        rate("weight_average", self.weight_average, "Option")

    @property
    def windows(self) -> int | list[int]:
        """The window of all layers, or of each."""
        if self.first_qrnn_k is None:
            return self.qrnn_k
        return [self.first_qrnn_k] + [self.qrnn_k] * (self.qrnn_layers - 1)

    @property
    def eval_steps(self) -> int:
        """Steps that an evaluation reads at a time."""
        # A QRNN takes a long stretch at once; an LSTM's cost is in its steps.
        return self.seq_len * (self.batch_size if self.cell == "qrnn" else 1)


# Recipes by name, as what differs from the defaults. "awd" has the sizes and dropout
# rates of the QRNN in the published code of arXiv 1708.02182. It leaves out dropped
# weights, for which zoneout stands, activation regularization and random lengths of
# batches; its learning rate was chosen here (theirs, 30, belongs to a mean over 70
# steps), and its averages are exponential ones.
PRESETS = {
    "paper": {},
    "awd": {
        "epoch": 150, "qrnn_size": 1550, "qrnn_layers": 4, "emb_dim": 400,
        "first_qrnn_k": 2, "qrnn_k": 1, "tied": True, "embedding_scale": 0.1,
        "dropout": 0.4, "hidden_dropout": 0.3, "locked_dropout": True,
        "embedding_dropout": 0.1, "zoneout": 0.1, "learning_rate": 0.5,
        "constant_epochs": 100, "weight_decay": 1e-4, "weight_average": 0.999,
    },
}  # fmt: skip


def build_language_model(options: TrainingOptions, vocab_size: int) -> LanguageModel:
    """The options' model, built and compiled with the options' optimizer."""
    model = LanguageModel(
        vocab_size,
        emb_dim=options.emb_dim,
        units=options.qrnn_size,
        layers=options.qrnn_layers,
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
        seed=options.seed,
        dtype=options.dtype_policy,
    )
    model.build()
    no_decay = None if options.optimizer == "sgd" else 0.0  # AdamW wants a number
    # Keras multiplies the decay by the rate and leaves it out of the clip.
    optimizer = OPTIMIZERS[options.optimizer](
        options.learning_rate,
        global_clipnorm=options.grad_clip,
        weight_decay=options.weight_decay or no_decay,
        use_ema=bool(options.weight_average),
        ema_momentum=options.weight_average,
    )
    model.compile(optimizer)
    # With mixed_float16 this is a wrapper, with variables of its own.
    model.optimizer.build(model.trainable_variables)
    return model


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

    Args:
        corpus: text to train on and to validate with.
        vocabulary: of its training split.
        options: the recipe.
        save_path: directory; see `RunFiles` for what it will hold.
        resume: whether to go on from the checkpoint in `save_path`. The run then
            ends with the weights of one that was never interrupted.
        callbacks: further Keras callbacks, called last.
        verbose: as in `keras.Model.fit`.

    Returns:
        The logs of each epoch.

    Raises:
        FileExistsError: if `save_path` holds a run and `resume` is False.
        ValueError: if the checkpoint is damaged or of a run with other options, or
            if the model to finetune is of another shape or vocabulary.
        OSError: if `save_path` cannot be written.
    """
    directory = Path(save_path)
    path = directory / "checkpoint.npz"
    known = asdict(options) | {"vocabulary": len(vocabulary)}
    known["data"] = fingerprint(vocabulary.words, corpus.train, corpus.valid)
    known["backend"] = keras.config.backend()  # each draws its own random numbers
    if path.exists():
        if not resume:
            raise FileExistsError(
                f"Option `save_path`: {directory} holds a run already. Use --resume "
                "to go on with it, or another --save_path"
            )
        _check_options(path, known)
        meta = read_meta(path)
        begun = len(meta["history"]) + bool(meta["step"])
        if begun > options.epoch:
            raise ValueError(
                f"Option `epoch`: the run in {directory} has begun {begun} epochs "
                f"already. Received: epoch={options.epoch}"
            )
    keras.utils.set_random_seed(options.seed)
    model = build_language_model(options, len(vocabulary))
    if options.finetune is not None and not path.exists():
        _start_from(Path(options.finetune), model, vocabulary)
    train = vocabulary.encode(corpus.train)
    valid = vocabulary.encode(corpus.valid)
    evaluator = Evaluator(model, valid, options.eval_steps)
    BPTTBatches(train, options.batch_size, options.seq_len)  # refuses what is too short
    row = -(-(len(train) - 1) // options.batch_size)
    if options.seq_len > row:
        raise ValueError(
            f"Option `seq_len` must be at most {row}, the tokens of the training split "
            f"for each row of a batch. Received: seq_len={options.seq_len}"
        )
    directory.mkdir(parents=True, exist_ok=True)
    remove_leftovers(directory)
    vocabulary.save(directory / "vocabulary.json")

    epoch, step, history, metrics, elapsed = 0, 0, [], None, 0.0
    if path.exists():
        meta = load_checkpoint(path, model)
        epoch, step, history = meta["epoch"], meta["step"], meta["history"]
        elapsed = meta["seconds"]
        metrics = [keras.ops.convert_to_numpy(v) for v in model.metrics_variables]
        if verbose:
            print(f"Going on after {epoch} epochs and {step} steps", flush=True)

    def fit(
        last_epoch: int, step: int, metrics: list[np.ndarray] | None, elapsed: float
    ) -> None:
        model.fit(
            BPTTBatches(train, options.batch_size, options.seq_len, step),
            initial_epoch=epoch,
            epochs=last_epoch,
            shuffle=False,
            verbose=verbose,
            callbacks=[
                learning_rate_schedule(
                    options.learning_rate,
                    options.learning_rate_decay,
                    options.constant_epochs,
                ),
                CarriedState(metrics),
                ValidationPerplexity(evaluator),
                RunFiles(directory, known, history, options.save_every, step, elapsed),
                Stopping(history, options.early_stopping),
                *(callbacks or []),
            ],
        )

    if step:  # the rest of the epoch that was interrupted
        fit(epoch + 1, step, metrics, elapsed)
        epoch += 1
        load_checkpoint(path, model)  # `fit` ends with the averages as weights
    if epoch < options.epoch and not is_over(history, options.early_stopping):
        fit(options.epoch, 0, None, 0.0)
    return history


def load_trained(
    directory: str | os.PathLike, option: str
) -> tuple[LanguageModel, Vocabulary]:
    """The best model of a run, and its vocabulary.

    Args:
        directory: the run's `save_path`.
        option: name under which an error speaks of it.

    Raises:
        FileNotFoundError: if one of the two files is not there.
        ValueError: if one is damaged, or if they do not belong together.
    """
    directory = Path(directory)
    for name in ("model.keras", "vocabulary.json"):
        if not (directory / name).is_file():
            raise FileNotFoundError(
                f"Option `{option}` must be a directory that train_lm.py wrote. "
                f"Received: {directory}, which holds no {name}"
            )
    vocabulary = Vocabulary.load(directory / "vocabulary.json")
    try:
        model = keras.saving.load_model(directory / "model.keras", compile=False)
    except (ValueError, KeyError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"Option `{option}`: {directory / 'model.keras'} is not a whole model. "
            f"Received: {type(error).__name__}: {error}"
        ) from error
    expected = model.get_config()["vocab_size"]
    if expected != len(vocabulary):
        raise ValueError(
            f"Option `{option}`: the vocabulary in {directory} does not fit the model. "
            f"Expected {expected} words. Received: {len(vocabulary)}"
        )
    return model, vocabulary


def _start_from(run: Path, model: LanguageModel, vocabulary: Vocabulary) -> None:
    trained, words_of_run = load_trained(run, "finetune")
    if words_of_run.words != vocabulary.words:
        raise ValueError(
            f"Option `finetune`: the run in {run} has another vocabulary than that of "
            "this corpus"
        )
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


def _check_options(path: Path, expected: dict) -> None:
    # What a checkpoint does not know of was added since: an option, then unused.
    found = asdict(TrainingOptions())
    found |= {name: expected[name] for name in ("data", "backend")}
    meta = read_meta(path)
    found |= meta["options"]
    # A run may be made longer, its checkpoints written more or less often, and the
    # learning rates of epochs to come may change.
    free = {"epoch", "save_every", "early_stopping"}
    begun = range(len(meta["history"]) + bool(meta["step"]))
    if all(_learning_rate(found, n) == _learning_rate(expected, n) for n in begun):
        free |= set(SCHEDULE)
    sources = [options["finetune"] for options in (found, expected)]
    if all(sources) and len({Path(source).resolve() for source in sources}) == 1:
        free.add("finetune")  # the same, spelled in another way
    other = [n for n in expected if n not in free and found.get(n) != expected[n]]
    if other:
        name = other[0]
        raise ValueError(
            f"Option `resume`: the run in {path.parent} has "
            f"{name}={found.get(name)!r}. Received: {name}={expected[name]!r}"
        )


def _learning_rate(options: dict, epoch: int) -> float:
    return learning_rate_at(epoch, *(options[name] for name in SCHEDULE))
