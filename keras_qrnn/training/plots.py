"""The pictures of a run: its training, and gates and states over a text."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from keras_qrnn._files import atomic_write
from keras_qrnn.training.options import path as check_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def pyplot() -> ModuleType:
    """`matplotlib.pyplot`, set to draw into files and open no window.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(
            "Plots are drawn with matplotlib, which is not installed: "
            "pip install '.[lm]' in a checkout of keras-qrnn"
        ) from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def figure_path(option: str, value: str) -> Path:
    """The path of a picture, checked before the work that leads to it.

    Args:
        option: name of the option that gives the path.
        value: the path. Its suffix is the format: `.png`, `.pdf`, `.svg` and others.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if `value` is a directory or has no suffix of a picture.
    """
    file = Path(check_path(option, value))
    formats = sorted(pyplot().Figure().canvas.get_supported_filetypes())
    if file.is_dir() or file.suffix.lower().removeprefix(".") not in formats:
        raise ValueError(
            f"Option `{option}` must name a file of one of the formats "
            f"{', '.join(formats)}. Received: {option}={value!r}"
        )
    return file


def save_figure(figure: "Figure", path: Path) -> None:
    """Writes the figure and closes it. `path` is never half-written.

    The suffix of `path` is the format.
    """
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120)
    pyplot().close(figure)


@dataclass(frozen=True)
class Panel:
    """One of the pictures in `training.png`. Its horizontal axis is the epoch.

    Attributes:
        title: the quantity shown, with its unit.
        curves: for each label, a function from an epoch's logs to the value drawn.
        log: whether the vertical axis is logarithmic.
    """

    title: str
    curves: Mapping[str, Callable[[dict], float]]
    log: bool = False


def plot_history(path: Path, history: list[dict], panels: Sequence[Panel]) -> None:
    """Draws the panels and, below them, the learning rate of each epoch.

    Args:
        path: the PNG to write.
        history: the logs of each epoch, with `epoch` and `learning_rate`.
        panels: the pictures above the learning rate.
    """
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    epochs = [row["epoch"] for row in history]
    rate = Panel("learning rate", {"": lambda row: row["learning_rate"]})
    panels = [*panels, rate]
    figure, axes = pyplot().subplots(
        len(panels),
        figsize=(7, 8),
        sharex=True,
        squeeze=False,
        layout="tight",
    )
    axes = axes[:, 0]
    for axis, panel in zip(axes, panels, strict=True):
        for label, value in panel.curves.items():
            axis.plot(epochs, [value(row) for row in history], ".-", label=label)
        if panel.log:
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter(ScalarFormatter())
            axis.yaxis.set_minor_formatter(NullFormatter())
        if len(panel.curves) > 1:
            axis.legend()
        axis.set_ylabel(panel.title)
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel("epoch")
    save_figure(figure, path)


def plot_states(
    path: Path, states: np.ndarray, words: list[str], title: str, max_units: int = 256
) -> None:
    """Draws a heat map of a layer's states: a row a word, a column a unit.

    Args:
        path: the PNG to write.
        states: float array of shape `(time, units)`.
        words: the word of each time step.
        title: a line above.
        max_units: number of units shown, from the first on.
    """
    shown = states[:, :max_units]
    figure, axis = pyplot().subplots(
        figsize=(9, max(4, 1 + 0.14 * len(words))), layout="constrained"
    )
    most = abs(shown).max() or 1
    image = axis.imshow(
        shown,
        aspect="auto",
        interpolation="nearest",
        cmap="RdBu_r",
        vmin=-most,
        vmax=most,
    )
    figure.colorbar(image, ax=axis, pad=0.01)
    axis.set_title(title, parse_math=False)
    axis.set_xlabel("unit")
    axis.set_yticks(range(len(words)))
    axis.set_yticklabels(words, fontsize=7, parse_math=False)
    save_figure(figure, path)


def plot_gates(
    path: Path, gates: dict[str, dict], words: list[str], max_units: int = 64
) -> None:
    """Draws a heat map of each layer's gates: a column a word, a row a unit.

    Args:
        path: the PNG to write.
        gates: for each layer's name, its gates by name: float arrays of shape
            `(time, units)` after their activation.
        words: the word of each time step.
        max_units: number of units shown, from the first on.
    """
    panels = [
        (f"{name}: {gate}", values, -1 if gate == "z" else 0)
        for name, layer in gates.items()
        for gate, values in layer.items()
    ]
    figure, axes = pyplot().subplots(
        len(panels),
        figsize=(max(6, 1 + 0.14 * len(words)), 1 + 2 * len(panels)),
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    axes = axes[:, 0]
    for axis, (title, values, low) in zip(axes, panels, strict=True):
        image = axis.imshow(
            values[:, :max_units].T,
            aspect="auto",
            interpolation="nearest",
            cmap="RdBu_r" if low else "viridis",
            vmin=low,
            vmax=1,
        )
        axis.set_title(title)
        axis.set_ylabel("unit")
        figure.colorbar(image, ax=axis, pad=0.01)
    axes[-1].set_xticks(range(len(words)))
    # Without `parse_math=False`, matplotlib reads text between two $ as mathematics.
    axes[-1].set_xticklabels(words, rotation=90, fontsize=8, parse_math=False)
    save_figure(figure, path)


def plot_attention(
    path: Path, weights: np.ndarray, source: Sequence[str], target: Sequence[str]
) -> None:
    """Draws where a decoder looks: a column a source symbol, a row a target symbol.

    Args:
        path: the PNG to write.
        weights: float array of shape `(target, source)`.
        source: the symbols of the source.
        target: the symbols of the translation.
    """
    size = (2 + 0.14 * len(source), 1.5 + 0.14 * len(target))
    figure, axis = pyplot().subplots(figsize=size, layout="constrained")
    image = axis.imshow(weights, aspect="auto", interpolation="nearest", vmin=0, vmax=1)
    figure.colorbar(image, ax=axis, label="attention")
    # As in `plot_gates`: text between two $ is not mathematics.
    style = {"fontsize": 8, "parse_math": False}
    axis.set_xticks(range(len(source)), source, **style)
    for label in axis.get_xticklabels():
        if len(label.get_text()) > 1:  # such as <eos>: wider than its column
            label.set_rotation(90)
    axis.set_yticks(range(len(target)), target, **style)
    axis.set_xlabel("source")
    axis.set_ylabel("translation")
    save_figure(figure, path)
