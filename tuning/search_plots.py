"""The pictures of a search: its objective by trial and by hyperparameter."""

import math
from pathlib import Path

import numpy as np

from keras_qrnn.training.objective import Objective
from keras_qrnn.training.plots import pyplot, save_figure
from search_space import Dimension, Space, shown


def varied(rows: list[dict], space: Space) -> list[str]:
    """The hyperparameters that are not the same in all trials."""
    return [name for name in space if len({row[name] for row in rows}) > 1]


def label_of(objective: Objective) -> str:
    """The objective in words: "validation perplexity" for `val_perplexity`."""
    return objective.name.replace("val_", "validation ").replace("_", " ")


def better(objective: Objective) -> np.ufunc:
    """The function that gives the better of two values."""
    return np.minimum if objective.direction == "min" else np.maximum


def index_of_best(values: np.ndarray, objective: Objective) -> int:
    """The index of the best value."""
    return int(values.argmin() if objective.direction == "min" else values.argmax())


def is_logarithmic(values: np.ndarray, objective: Objective) -> bool:
    """Whether the objective is drawn by its logarithm: a loss or a perplexity."""
    return objective.direction == "min" and bool(values.min() > 0)


def plot_objective(path: Path, rows: list[dict], objective: Objective) -> None:
    """The objective of each trial, and the best so far."""
    figure, axis = pyplot().subplots(figsize=(8, 4.5), layout="tight")
    done = [n for n, row in enumerate(rows, 1) if row[objective.name] != ""]
    values = np.array([rows[n - 1][objective.name] for n in done])
    best = better(objective).accumulate(values)
    axis.step(
        [*done, len(rows)], [*best, best[-1]], "C0", where="post", label="best so far"
    )
    axis.plot(done, values, "o", color="C7", alpha=0.8, label="trial")
    last = index_of_best(values, objective)
    axis.plot(
        done[last], values[last], "*", color="C3", markersize=16, label="the best"
    )
    axis.annotate(
        f"{values[last]:.4g}", (done[last], values[last]), textcoords="offset points",
        xytext=(8, 10), color="C3",
    )  # fmt: skip
    failed = [n for n, row in enumerate(rows, 1) if row[objective.name] == ""]
    if failed:
        # They have no value: they are drawn on the upper edge.
        edge = axis.get_xaxis_transform()
        axis.plot(
            failed,
            [0.98] * len(failed),
            "x",
            color="C1",
            transform=edge,
            label="failed",
        )
    _objective_scale(axis, values, objective)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_xlabel("trial, in the order of their beginning")
    axis.set_ylabel(label_of(objective))
    axis.grid(alpha=0.3)
    axis.legend()
    save_figure(figure, path)


def plot_hyperparameters(
    path: Path, rows: list[dict], space: Space, objective: Objective
) -> None:
    """The objective against each hyperparameter that was varied."""
    names = varied(rows, space) or list(space)
    columns = min(4, len(names))
    lines = math.ceil(len(names) / columns)
    figure, axes = pyplot().subplots(
        lines, columns, figsize=(3.2 * columns, 3 * lines), squeeze=False,
        sharey=True, layout="constrained",
    )  # fmt: skip
    values = np.array([row[objective.name] for row in rows])
    best = index_of_best(values, objective)
    for axis, name in zip(axes.flat, names, strict=False):
        hyperparameter = space[name].hyperparameter
        at, labels = _positions(space[name], [row[name] for row in rows])
        # Trials of equal values are drawn side by side, not one over the other.
        if labels:
            shift = np.random.default_rng(0).uniform(-0.15, 0.15, len(at))
            at = at + shift
            axis.set_xticks(range(len(labels)), labels)
            axis.set_xlim(-0.5, len(labels) - 0.5)
        elif hyperparameter.log:
            _log_scale(axis.xaxis, (1, 2, 5))
        axis.plot(at, values, "o", color="C0", alpha=0.6, markersize=5)
        axis.plot(at[best], values[best], "*", color="C3", markersize=14)
        _objective_scale(axis, values, objective)
        axis.set_xlabel(name)
        axis.grid(alpha=0.3)
    for axis in axes[:, 0]:
        axis.set_ylabel(label_of(objective))
    for axis in axes.flat[len(names) :]:
        axis.remove()
    figure.suptitle(f"{len(rows)} trials; the star is the best")
    save_figure(figure, path)


def plot_parallel(
    path: Path, rows: list[dict], space: Space, objective: Objective
) -> None:
    """Each trial a line through its hyperparameters to its objective."""
    plt = pyplot()
    names = varied(rows, space) or list(space)
    values = np.array([row[objective.name] for row in rows])
    figure, host = plt.subplots(
        figsize=(1.7 * (len(names) + 1) + 1, 5), layout="constrained"
    )
    columns, axes = [], [host] + [host.twinx() for _ in names]
    for n, (axis, name) in enumerate(zip(axes, [*names, None], strict=True)):
        if name is None:
            at, labels, log = values, None, is_logarithmic(values, objective)
        else:
            hyperparameter = space[name].hyperparameter
            at, labels = _positions(space[name], [row[name] for row in rows])
            log = hyperparameter.log and not labels
        at = np.log(at) if log else at
        low, high = at.min(), at.max()
        if low == high:
            low, high = low - 0.5, high + 0.5
        columns.append((at - low) / (high - low))
        ticks = np.arange(len(labels)) if labels else np.linspace(low, high, 5)
        if not labels:
            labels = [f"{v:.3g}" for v in (np.exp(ticks) if log else ticks)]
        axis.set_ylim(-0.03, 1.03)
        axis.set_yticks((ticks - low) / (high - low), labels)
        axis.patch.set_visible(False)
        for side in ("top", "bottom", "right"):
            axis.spines[side].set_visible(False)
        axis.yaxis.set_ticks_position("left")
        axis.spines["left"].set_position(("data", n))
    host.set_xlim(-0.2, len(names) + 0.2)
    label = label_of(objective).replace(" ", "\n")
    host.set_xticks(range(len(names) + 1), [*names, label])
    host.xaxis.tick_top()
    host.tick_params(axis="x", length=0)
    lines = np.stack(columns, 1)
    # Colours go by rank. By value, one bad trial would leave the others one colour.
    order = np.argsort(values if objective.direction == "min" else -values)
    rank = order.argsort() / max(1, len(values) - 1)
    for n in order[::-1]:  # the best on top
        best = n == order[0]
        host.plot(
            range(len(axes)), lines[n], lw=2.8 if best else 1.3,
            color="C3" if best else plt.colormaps["viridis"](rank[n]),
            alpha=1 if best else 0.6,
        )  # fmt: skip
    figure.suptitle(f"{len(rows)} trials, from yellow, the worst, to red, the best")
    save_figure(figure, path)


def _positions(
    dimension: Dimension, values: list
) -> tuple[np.ndarray, list[str] | None]:
    """Positions of the values on an axis, and labels if the search has few values."""
    if dimension.hyperparameter.type is str or dimension.count <= 4:
        kinds = sorted(set(values))
        return np.array([kinds.index(value) for value in values], float), [
            shown(kind) for kind in kinds
        ]
    return np.array(values, float), None


def _objective_scale(axis, values: np.ndarray, objective: Objective) -> None:  # noqa: ANN001
    """Makes the scale logarithmic if some trials are far worse than others."""
    if is_logarithmic(values, objective) and values.max() > 2 * values.min():
        _log_scale(axis.yaxis, (1, 1.5, 2, 3, 4, 5, 7))


def _log_scale(axis, marks: tuple[float, ...]) -> None:  # noqa: ANN001
    """Makes the scale logarithmic, with plain numbers at `marks` in each decade."""
    from matplotlib.ticker import LogLocator, NullLocator

    getattr(axis.axes, f"set_{axis.axis_name}scale")("log")
    axis.set_major_locator(LogLocator(subs=marks))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())
