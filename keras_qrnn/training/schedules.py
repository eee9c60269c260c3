"""Schedules of learning rate and momentum. They depend on the step alone."""

import math

import keras
from keras import ops

from keras_qrnn._checks import positive_integer
from keras_qrnn._types import Tensor


@keras.saving.register_keras_serializable(package="keras_qrnn")
class OneCycle(keras.optimizers.schedules.LearningRateSchedule):
    """Rises once, falls, and anneals (arXiv 1803.09820, section 4.1).

    The cycle has four linear parts. `rise`, `hold` and `anneal` are fractions of the
    steps:

    1. The value rises from `start` to `peak`, in the fraction `rise`.
    2. It stays at `peak`, for the fraction `hold`.
    3. It falls from `peak` to `start`, in the remaining steps.
    4. It falls from `start` to `end`, in the fraction `anneal`.

    After the last step the value stays at `end`.

    The value depends only on the optimizer's step count, which a checkpoint holds. So a
    resumed run continues exactly, and a compiled training step computes the value.

    A momentum mirrors the rate: give the larger momentum as `start` and `end`, and the
    smaller one as `peak`. See `keras_qrnn.training.optimizers.AdamW`.

    Args:
        peak: Number, the value at the end of the rise.
        steps: Positive integer, steps of the cycle.
        start: Number, the value of the first step. Defaults to `peak / 10`.
        end: Number, the value after the last step. Defaults to `peak / 1000`.
        rise: Fraction of the steps, in [0, 1), in which the value rises.
        hold: Fraction of the steps, in [0, 1), in which it stays at `peak`.
        anneal: Fraction of the steps, in [0, 1), at the end. The sum of the three
            fractions is below 1: some steps are left for the fall.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        peak: float,
        steps: int,
        start: float | None = None,
        end: float | None = None,
        rise: float = 0.3,
        hold: float = 0.0,
        anneal: float = 0.2,
        name: str = "one_cycle",
    ) -> None:
        super().__init__()
        self.peak = peak
        self.steps = positive_integer("steps", steps)
        self.start = peak / 10 if start is None else start
        self.end = peak / 1000 if end is None else end
        for which in ("peak", "start", "end"):
            value = getattr(self, which)
            if not 0 <= value < math.inf:
                raise ValueError(
                    f"Argument `{which}` must be 0 or a positive number. "
                    f"Received: {which}={value!r}"
                )
        if not (min(rise, hold, anneal) >= 0 and rise + hold + anneal < 1):
            raise ValueError(
                "Arguments `rise`, `hold` and `anneal` must not be negative, and their "
                "sum must be below 1. "
                f"Received: rise={rise!r}, hold={hold!r}, anneal={anneal!r}"
            )
        self.rise = rise
        self.hold = hold
        self.anneal = anneal
        self.name = name

    def __call__(self, step: Tensor) -> Tensor:
        """The value at `step`, counted from 0, as a float32 scalar."""
        step = ops.cast(step, "float32")
        top = self.rise * self.steps
        edge = (self.rise + self.hold) * self.steps
        bottom = (1 - self.anneal) * self.steps
        rising = _line(step, 0, top, self.start, self.peak)
        falling = _line(step, edge, bottom, self.peak, self.start)
        annealing = _line(step, bottom, self.steps, self.start, self.end)
        return ops.where(
            step < top, rising, ops.where(step < bottom, falling, annealing)
        )

    def get_config(self) -> dict:
        names = ("peak", "steps", "start", "end", "rise", "hold", "anneal", "name")
        return {name: getattr(self, name) for name in names}


def _line(
    step: Tensor, first: float, last: float, start: float, end: float
) -> Tensor | float:
    """A line from `start` at step `first` to `end` at step `last`, then `end`."""
    if last <= first:
        return end
    done = ops.clip((step - first) / (last - first), 0.0, 1.0)
    return start * (1.0 - done) + end * done
