"""The objective of a run: the validation metric that chooses the best epoch."""

import math
from dataclasses import dataclass

from keras_qrnn._checks import one_of


@dataclass(frozen=True)
class Objective:
    """The metric that chooses the best epoch.

    Args:
        name: column of an epoch's logs, such as `"val_perplexity"`.
        direction: `"min"` if lower is better, `"max"` if higher is better.

    Raises:
        ValueError: if `direction` is neither.
    """

    name: str
    direction: str = "min"

    def __post_init__(self) -> None:
        one_of("direction", self.direction, ("min", "max"))

    def best(self, history: list[dict]) -> int | None:
        """Index of the best epoch of `history`. Of equal epochs the first is the best.

        None if no epoch has a finite value.
        """
        values = [row[self.name] for row in history]
        finite = [n for n, value in enumerate(values) if math.isfinite(value)]
        if not finite:
            return None
        choose = min if self.direction == "min" else max
        return choose(finite, key=lambda n: values[n])

    def is_over(self, history: list[dict], patience: int) -> bool:
        """Whether to train no further after the epochs of `history`.

        Training ends if the metric is no longer finite, because it would not recover.
        It also ends if the metric has not improved for `patience` epochs; a `patience`
        of 0 turns this off. The answer depends on the history alone. So a resumed run
        stops at the same epoch as an uninterrupted one.
        """
        if not history:
            return False
        best = self.best(history)
        if best is None or not math.isfinite(history[-1][self.name]):
            return True
        return 0 < patience <= len(history) - 1 - best
