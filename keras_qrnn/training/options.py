"""The options of a run: names, defaults, help texts and ranges.

An option is a field of a dataclass that `option` makes. The field carries its help
text, its older names and its check. The command lines are built from these fields:
see `keras_qrnn.training.command_line`.
"""

import functools
import os
import typing
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, Self, TypeVar

from keras_qrnn._checks import (
    integer,
    number_from_zero,
    one_of,
    positive_integer,
    positive_number,
    rate,
)
from keras_qrnn.models.language_model import CELLS
from keras_qrnn.ops.equations import GATES

OPTIMIZERS = ("sgd", "adamw", "rmsprop")
SCHEDULES = ("decay", "one_cycle")
DISTRIBUTIONS = ("data", "model")
DTYPE_POLICIES = (
    "float32",
    "mixed_bfloat16",
    "mixed_float16",
    "bfloat16",
    "float16",
    "float64",
)
# The largest number that the backends take for a size or a seed.
MOST = 2**31 - 1
# Half of the largest number of a type: the difference of two such numbers is finite.
FLOAT32_MOST = 1.7e38
FLOAT16_MOST = 32752.0

Check = Callable[[str, Any], object]
Options = TypeVar("Options")


def option(default: Any, help: str, check: Check, *older_names: str) -> Any:
    """A dataclass field that is an option.

    Args:
        default: its default value.
        help: one line about the option, for the command line.
        check: takes the option's name and a value that is not None. Raises a
            `ValueError` that names the option.
        older_names: earlier names of the option. Command lines, configuration files
            and checkpoints still take them.
    """
    return field(
        default=default,
        metadata={"help": help, "check": check, "older_names": older_names},
    )


def count(name: str, value: int) -> int:
    """The check of an option that is a size or a number of things."""
    return positive_integer(name, value, "Option", MOST)


def refuse_without_qrnn(options: Any, *names: str) -> None:
    """Raises a ValueError if options that only a QRNN has are set for an LSTM."""
    for name in names:
        if (value := getattr(options, name)) and options.cell != "qrnn":
            to_do = "leave it out" if isinstance(value, str) else "set it to 0"
            raise ValueError(
                f"Option `{name}` goes with the QRNN: {to_do} for an LSTM. "
                f"Received: {name}={value!r}, cell={options.cell!r}"
            )


def fraction(name: str, value: float) -> float:
    """The check of an option that is a rate in [0, 1)."""
    return rate(name, value, "Option")


def positive(name: str, value: float) -> float:
    """The check of an option that is a positive number."""
    return _in_float32(name, positive_number(name, value, "Option"))


def not_negative(name: str, value: float) -> float:
    """The check of an option that is 0 or a positive number."""
    return _in_float32(name, number_from_zero(name, value, "Option"))


def _in_float32(name: str, value: float) -> float:
    if value > FLOAT32_MOST:
        raise ValueError(
            f"Option `{name}` must be at most {FLOAT32_MOST:g}. "
            f"Received: {name}={value!r}"
        )
    return value


def count_or_zero(name: str, value: int) -> int:
    """The check of an option that is a number of things, or 0 for none."""
    return integer(name, value, 0, MOST, "Option")


def flag(name: str, value: bool) -> bool:
    """The check of an option that is true or false."""
    if not isinstance(value, bool):
        raise ValueError(
            f"Option `{name}` must be true or false. Received: {name}={value!r}"
        )
    return value


def path(name: str, value: str | os.PathLike) -> str | os.PathLike:
    """The check of an option that names a file or a directory."""
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise ValueError(f"Option `{name}` must be a path. Received: {name}={value!r}")
    if "\0" in os.fspath(value):
        raise ValueError(
            f"Option `{name}` must be a path, which holds no null character. "
            f"Received: {name}={value!r}"
        )
    return value


def not_empty(name: str, value: str) -> str:
    """The check of an option that is any text, but not an empty one."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(
            f"Option `{name}` must not be empty. Received: {name}={value!r}"
        )
    return value


def choice(*choices: str) -> Check:
    """The check of an option that is one of `choices`."""

    def check(name: str, value: str) -> str:
        return one_of(name, value, choices, "Option")

    return check


def takes_older_names(options: type[Options]) -> type[Options]:
    """Lets a dataclass of options take the older names of its options too."""
    init = options.__init__

    @functools.wraps(init)
    def by_any_name(self: Options, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **_by_current_names(kwargs, options))

    options.__init__ = by_any_name  # type: ignore
    return options


@dataclass(frozen=True)
class RunOptions:
    """The options of any training: its length, optimizer, schedule, seed and dtype.

    A task has a subclass, which adds the options of its model and its data. With
    `redefault` it gives the options here defaults of its own.

    - The learning rate falls after `constant_epochs` epochs. With the schedule
      `one_cycle` it rises to `learning_rate`, falls and anneals instead: see
      `OneCycle`.
    - With a `weight_average` above 0, moving averages of the weights are validated
      and kept. The number is the momentum of the averages. With an `average_trigger`
      above 0 they are plain averages since validation stalled: see
      `AverageAfterStall`.

    Attributes:
        given: names of the options that were given, also where the value is the
            default. If all are given, as by `dataclasses.replace`, those that differ
            from their defaults; `changed` makes a copy that keeps what was given.

    Raises:
        ValueError: if a value is out of its range.
    """

    epochs: int = option(10, "epochs to train", count, "epoch")
    batch_size: int = option(32, "rows of a batch", count)
    save_every: int = option(100, "steps between two checkpoints", count)
    early_stopping: int = option(
        0, "N: stop after N epochs without improvement; 0: never", count_or_zero
    )
    optimizer: str = option("adamw", "sgd, adamw or rmsprop", choice(*OPTIMIZERS))
    learning_rate: float = option(0.001, "rate of the first epochs", positive)
    learning_rate_decay: float = option(
        0.95, "factor on the rate in each further epoch", positive
    )
    constant_epochs: int = option(6, "number of these first epochs", count)
    grad_clip: float | None = option(None, "largest norm of the gradient", positive)
    weight_decay: float = option(0.0, "decay of the weights in a step", not_negative)
    schedule: str = option(
        "decay",
        "decay: the rate falls after constant_epochs; one_cycle: it rises to "
        "learning_rate, falls and anneals",
        choice(*SCHEDULES),
    )
    cycle_rise: float = option(0.3, "part of the one cycle that rises", fraction)
    cycle_hold: float = option(
        0.0, "part of the one cycle that stays at learning_rate", fraction
    )
    cycle_anneal: float = option(0.2, "part of the one cycle that anneals", fraction)
    beta_1: float = option(0.9, "momentum of adamw", fraction)
    beta_2: float = option(0.999, "decay of adamw's second moment", fraction)
    cycle_beta_1: float | None = option(
        None, "momentum of adamw at the peak of the one cycle, if it differs", fraction
    )
    rho: float = option(0.9, "decay of rmsprop's second moment", fraction)
    epsilon: float = option(
        1e-7, "added to the root of the second moment by adamw and rmsprop", positive
    )
    weight_average: float = option(
        0.0, "momentum of the weights' moving averages; 0: none", fraction
    )
    average_trigger: int = option(
        0,
        "N: average the weights once validation is worse than its best before the "
        "last N epochs (NT-ASGD); 0: never",
        count_or_zero,
    )
    distribution: str | None = option(
        None,
        "use all devices, with JAX; data: each has a part of the rows of a batch; "
        "model: each has a part of the weights",
        choice(*DISTRIBUTIONS),
    )
    seed: int = option(0, "seed of all randomness", count_or_zero)
    dtype_policy: str = option(
        "float32",
        "Keras dtype policy, such as mixed_bfloat16",
        choice(*DTYPE_POLICIES),
    )

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        self = super().__new__(cls)
        defaults = defaults_of(cls)
        given = dict(zip(defaults, args, strict=False))
        given |= _by_current_names(kwargs, cls)
        if given.keys() == defaults.keys():
            given = {n: value for n, value in given.items() if value != defaults[n]}
        object.__setattr__(self, "_given", frozenset(given))  # the class is frozen
        return self

    @property
    def given(self) -> frozenset[str]:
        return self.__dict__["_given"]

    def changed(self, **changes: Any) -> Self:
        """A copy with other values of some options. What was given stays given."""
        values = {name: getattr(self, name) for name in self.given}
        return type(self)(**values | with_current_names(changes, type(self)))

    def __post_init__(self) -> None:
        check_each(self)
        if self.weight_average and self.average_trigger:
            raise ValueError(
                "Options `weight_average` and `average_trigger` exclude each other. "
                f"Received: weight_average={self.weight_average!r}, "
                f"average_trigger={self.average_trigger!r}"
            )
        if self.average_trigger and self.optimizer == "rmsprop":
            raise ValueError(
                "Option `average_trigger` goes with sgd and adamw. "
                f"Received: average_trigger={self.average_trigger!r}, "
                f"optimizer={self.optimizer!r}"
            )
        if self.cycle_rise + self.cycle_hold + self.cycle_anneal >= 1:
            raise ValueError(
                "Options `cycle_rise`, `cycle_hold` and `cycle_anneal` must have a sum "
                f"below 1. Received: cycle_rise={self.cycle_rise!r}, "
                f"cycle_hold={self.cycle_hold!r}, cycle_anneal={self.cycle_anneal!r}"
            )
        # The layers draw from seeds of their own, which follow this one.
        if self.seed > MOST - self.seeds:
            raise ValueError(
                f"Option `seed` must be at most {MOST - self.seeds} with these layers. "
                f"Received: seed={self.seed}"
            )

    @property
    def seeds(self) -> int:
        """Number of seeds that the model uses: `seed` and those that follow it."""
        return 1


def named_fields(options: Any) -> dict[str, Field]:
    """The fields of a dataclass of options, or of one of its instances, by name."""
    return {each.name: each for each in fields(options)}


def redefault(
    name: str, default: Any, owner: Any = RunOptions, help: str | None = None
) -> Any:
    """The option `name` of `owner`, with another default and perhaps another help."""
    metadata = dict(named_fields(owner)[name].metadata)
    if help is not None:
        metadata["help"] = help
    return field(default=default, metadata=metadata)


@takes_older_names
@dataclass(frozen=True)
class TrainingOptions(RunOptions):
    """The recipe of a language model; the defaults are those of the paper.

    That is arXiv 1611.01576, section 3.2. `LanguageModel` explains the options that
    are its arguments. Others are:

    - `first_window` is the window of the first layer, if it differs from `window`.
    - `random_lengths` varies the steps of a batch: see `BPTTBatches`.

    `finetune` is the `save_path` of a finished run. This run starts from its best
    weights (arXiv 1708.02182, section 5).

    Raises:
        ValueError: if a value is out of its range.
    """

    cell: str = option("qrnn", "qrnn, lstm or unrolled_lstm", choice(*CELLS))
    epochs: int = redefault("epochs", 72)
    batch_size: int = redefault("batch_size", 20)
    seq_len: int = option(105, "steps of backpropagation through time", count)
    units: int = option(640, "units of each layer", count, "qrnn_size")
    layers: int = option(2, "number of layers", count, "qrnn_layers")
    window: int = option(2, "window of the convolution", count, "qrnn_k")
    emb_dim: int = option(650, "size of the embedding", count)
    vocab_size: int = option(
        10001,
        "words kept at most, the most frequent",
        lambda name, value: integer(name, value, 2, MOST, "Option"),
    )
    pooling: str = option("fo", "f, fo or ifo", choice(*GATES))
    zoneout: float = option(0.1, "zoneout rate", fraction)
    dropout: float = option(0.5, "dropout rate", fraction)
    optimizer: str = redefault(
        "optimizer",
        "sgd",
        help="sgd, or with a smaller learning_rate, such as 0.002, adamw or rmsprop",
    )
    learning_rate: float = redefault("learning_rate", 1.0)
    grad_clip: float = redefault("grad_clip", 10.0)
    weight_decay: float = option(2e-4, "L2 regularization", not_negative)
    embedding_scale: float = option(
        1.0, "the embedding starts uniform between minus and plus this", positive
    )
    first_window: int | None = option(
        None, "window of the first layer, if it differs", count, "first_qrnn_k"
    )
    tied: bool = option(False, "one matrix for embedding and softmax", flag)
    locked_dropout: bool = option(
        False, "dropout drops the same features at all steps of a batch", flag
    )
    embedding_dropout: float = option(0.0, "rate at which words are dropped", fraction)
    hidden_dropout: float | None = option(
        None, "dropout rate between layers, if it differs", fraction
    )
    kernel_dropout: float = option(
        0.0, "rate at which elements of the QRNN's kernels are dropped", fraction
    )
    activation_regularization: float = option(
        0.0,
        "weight of the squares of the last layer's output after dropout",
        not_negative,
    )
    temporal_regularization: float = option(
        0.0,
        "weight of the squares of the last layer's change between steps",
        not_negative,
    )
    sampled_words: int = option(
        0,
        "words of the softmax in a training step, the target beside them; 0: all",
        count_or_zero,
    )
    random_lengths: bool = option(
        False, "batches of random numbers of steps around seq_len", flag
    )
    finetune: str | None = option(
        None, "save_path of another run whose weights this one starts from", path
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        half = self.dtype_policy in ("float16", "mixed_float16")
        if half and self.embedding_scale > FLOAT16_MOST:
            raise ValueError(
                f"Option `embedding_scale` must be at most {FLOAT16_MOST:g} with dtype "
                f"policy {self.dtype_policy}. "
                f"Received: embedding_scale={self.embedding_scale!r}"
            )
        refuse_without_qrnn(self, "kernel_dropout")

    @property
    def seeds(self) -> int:
        return 2 * self.layers + 3

    @property
    def windows(self) -> int | list[int]:
        """The window of all layers, or a list with the window of each."""
        return windows(self.window, self.first_window, self.layers)

    @property
    def eval_steps(self) -> int:
        """Steps that an evaluation reads at a time."""
        # A QRNN is fast for many steps at once. An LSTM's cost is in its steps. With
        # `sampled_words` a training step may have fewer logits than an evaluation.
        whole_batch = self.cell == "qrnn" and not self.sampled_words
        return self.seq_len * (self.batch_size if whole_batch else 1)


def windows(window: int, first: int | None, layers: int) -> int | list[int]:
    """The window of all layers, or a list with one for each if the first differs."""
    return window if first is None else [first] + [window] * (layers - 1)


# Recipes by name: the options that differ from the defaults. "awd" is the QRNN of arXiv
# 1708.02182: its sizes, dropout rates and regularization are those of the published
# code. That code trains for 550 epochs with averaged SGD; this recipe has one cycle of
# AdamW. Momenta, shape and clip are those of fast.ai, which trained this model in 90
# epochs on WikiText-2. There a batch had 100 rows and the peak rate was 0.005: the rate
# here is 0.005 times the root of 40 / 100. The clip of 0.12 was for a mean over 70
# steps: for a sum it is 70 times as large. The weight decay is decoupled here; theirs
# was a part of the gradient.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "awd": {
        "units": 1550, "layers": 4, "emb_dim": 400, "first_window": 2, "window": 1,
        "tied": True, "embedding_scale": 0.1, "zoneout": 0.0,
        "dropout": 0.4, "hidden_dropout": 0.3, "locked_dropout": True,
        "embedding_dropout": 0.1, "kernel_dropout": 0.1,
        "activation_regularization": 2.0, "temporal_regularization": 1.0,
        "epochs": 80, "batch_size": 40, "seq_len": 70, "random_lengths": True,
        "optimizer": "adamw", "learning_rate": 3e-3, "schedule": "one_cycle",
        "cycle_rise": 0.1, "cycle_hold": 0.3, "cycle_anneal": 0.1,
        "beta_1": 0.8, "cycle_beta_1": 0.7, "beta_2": 0.99,
        "grad_clip": 8.4, "weight_decay": 0.04,
    },
}  # fmt: skip


def check_each(options: Any) -> None:
    """Runs the check of each option of a dataclass instance.

    Raises:
        ValueError: for the first option whose value is out of its range.
    """
    for name, each in named_fields(options).items():
        value = getattr(options, name)
        if value is not None or each.default is not None:
            each.metadata["check"](name, value)


def type_of(options: Any, name: str) -> type:
    """The type of an option. For `int | None` it is `int`."""
    owner = options if isinstance(options, type) else type(options)
    hint = typing.get_type_hints(owner)[name]
    return (typing.get_args(hint) or (hint,))[0]


def with_current_names(
    values: Mapping[str, Any], options: Any = TrainingOptions
) -> dict[str, Any]:
    """`values` under the present names of the options.

    Args:
        values: options by name, older names among them: those of a configuration
            file, of a checkpoint or of `run.json`.
        options: the dataclass.

    Raises:
        ValueError: if an option is given under two names.
    """
    current = _current_names(options)
    found: dict[str, Any] = {}
    first: dict[str, str] = {}
    for given, value in values.items():
        name = current.get(given, given)
        if name in found:
            raise ValueError(
                f"`{first[name]}` and `{given}` are the same option. Give one"
            )
        found[name], first[name] = value, given
    return found


def _by_current_names(arguments: Mapping[str, Any], options: Any) -> dict[str, Any]:
    """The arguments of a dataclass of options, under their present names.

    `dataclasses.replace` passes the changes first, then all other fields. So an older
    name that comes before the present name is a change.
    """
    found = dict(arguments)
    if found.keys() > named_fields(options).keys():
        order = list(found)
        for older, name in _current_names(options).items():
            if older in found and order.index(older) < order.index(name):
                del found[name]
    return with_current_names(found, options)


def _current_names(options: Any) -> dict[str, str]:
    """The present name of each older name."""
    return {
        older: name
        for name, each in named_fields(options).items()
        for older in each.metadata["older_names"]
    }


def defaults_of(options: Any = TrainingOptions) -> dict[str, Any]:
    """The default value of each option by name."""
    return {name: each.default for name, each in named_fields(options).items()}
