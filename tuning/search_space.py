"""The space of a search: how ranges are written, drawn from and cut in a grid."""

import math
import re
from dataclasses import dataclass

import keras_tuner
import numpy as np

from keras_qrnn.training.options import RunOptions, named_fields, type_of

# Values that the grid takes of a range.
GRID_POINTS = 5
# Options whose ranges are drawn from, and plotted, on a logarithmic scale.
LOGARITHMIC = ("learning_rate", "weight_decay", "l2", "epsilon")
NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
RANGE = re.compile(rf"({NUMBER})\s*-\s*({NUMBER})", re.ASCII)


def shown(value: object) -> str:
    """The value as text. A float has four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Hyperparameter:
    """An option of the training that can be searched.

    Its type, its range and its help text are those of the option.

    Attributes:
        options: the dataclass of a task's options.
        name: the name of one of its fields.

    Raises:
        ValueError: if the task has no such option.
    """

    options: type[RunOptions]
    name: str

    def __post_init__(self) -> None:
        if self.name not in named_fields(self.options):
            raise ValueError(
                f"Hyperparameter `{self.name}` must be an option of "
                f"{self.options.__name__}: {', '.join(named_fields(self.options))}"
            )

    @property
    def log(self) -> bool:
        """Whether its ranges are on a logarithmic scale."""
        return self.name in LOGARITHMIC

    @property
    def type(self) -> type:
        """The type of its values."""
        return type_of(self.options, self.name)

    @property
    def help(self) -> str:
        """One line about it, for the command line."""
        return named_fields(self.options)[self.name].metadata["help"]

    def value(self, text: str) -> int | float | str:
        """The value that `text` stands for.

        Raises:
            ValueError: if the option cannot have it.
        """
        try:
            value = self.type(text)
        except ValueError as error:
            kind = "an integer" if self.type is int else "a number"
            raise ValueError(
                f"Option `{self.name}` must be {kind}, values separated by commas or "
                f"a range. Received: {text!r}"
            ) from error
        named_fields(self.options)[self.name].metadata["check"](self.name, value)
        return value


@dataclass(frozen=True)
class Dimension:
    """A hyperparameter and the values that it can take in a search.

    Attributes:
        hyperparameter: the hyperparameter.
        values: a list of different values, or a tuple with both ends of a range.
    """

    hyperparameter: Hyperparameter
    values: list | tuple

    @classmethod
    def parse(cls, hyperparameter: Hyperparameter, text: str) -> "Dimension":
        """The dimension that is written as `text`.

        Args:
            hyperparameter: the hyperparameter.
            text: a value, `"256"`; values, `"256,640"`; or a range with both its
                ends, `"256-640"`.

        Raises:
            ValueError: if that is empty or the hyperparameter cannot have a value.
        """
        name, text = hyperparameter.name, text.strip()
        bounds = RANGE.fullmatch(text) if hyperparameter.type is not str else None
        if bounds:
            low, high = map(hyperparameter.value, bounds.groups())
            if low > high:
                raise ValueError(
                    f"Option `{name}`: the range is empty, its lower end must come "
                    f"first. Received: {text!r}"
                )
            if hyperparameter.log and not low:
                raise ValueError(
                    f"Option `{name}`: the range is on a logarithmic scale, its lower "
                    f"end must be positive. Received: {text!r}"
                )
            return cls(hyperparameter, (low, high) if low < high else [low])
        values = [hyperparameter.value(part.strip()) for part in text.split(",")]
        if len(set(values)) < len(values):
            raise ValueError(
                f"Option `{name}` must name each value once. Received: {text!r}"
            )
        return cls(hyperparameter, values)

    def __str__(self) -> str:
        """The text that `parse` takes. Equal dimensions have equal texts."""
        separator = "-" if isinstance(self.values, tuple) else ","
        return separator.join(map(str, self.values))

    @property
    def count(self) -> float:
        """How many values it can take. A range of floats has infinitely many."""
        if isinstance(self.values, list):
            return len(self.values)
        low, high = self.values
        return high - low + 1 if self.hyperparameter.type is int else math.inf

    def grid(self) -> "Dimension":
        """The dimension of a grid: a few values of a range, with both its ends."""
        if isinstance(self.values, list):
            return self
        scale = np.geomspace if self.hyperparameter.log else np.linspace
        points = scale(*self.values, GRID_POINTS)
        if self.hyperparameter.type is int:
            return Dimension(
                self.hyperparameter, sorted({round(point) for point in points.tolist()})
            )
        # The ends are exact. Between them the digits of rounding errors say nothing.
        inner = [float(f"{point:.6g}") for point in points[1:-1]]
        return Dimension(self.hyperparameter, [self.values[0], *inner, self.values[1]])

    def add_to(self, found: keras_tuner.HyperParameters) -> None:
        """Adds the dimension to keras-tuner's space."""
        name = self.hyperparameter.name
        if len(self.values) == 1:
            found.Fixed(name, self.values[0])
        elif isinstance(self.values, list):
            found.Choice(name, self.values)
        elif self.hyperparameter.type is int:
            # On a logarithmic scale keras-tuner's Bayesian tuner would also try the
            # number after the upper end.
            found.Int(name, *self.values)
        else:
            scale = "log" if self.hyperparameter.log else "linear"
            found.Float(name, *self.values, sampling=scale)


Space = dict[str, Dimension]


def keras_tuner_space(space: Space) -> keras_tuner.HyperParameters:
    """The space as keras-tuner takes it."""
    found = keras_tuner.HyperParameters()
    for dimension in space.values():
        dimension.add_to(found)
    return found
