import math
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from keras_qrnn._files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def pyplot() -> ModuleType:
    """matplotlib.pyplot, drawing to files only."""
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


def save_figure(figure: "Figure", path: Path) -> None:
    """Writes a PNG, never half of it, and closes the figure."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120)
    pyplot().close(figure)


def plot_history(path: Path, history: list[dict]) -> None:
    """Loss, perplexity and learning rate of each epoch, one above the other."""
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    epochs = [row["epoch"] for row in history]
    perplexities = {
        "training": [row["perplexity"] for row in history],
        "validation": [row["val_perplexity"] for row in history],
    }
    figure, axes = pyplot().subplots(3, figsize=(7, 8), sharex=True, layout="tight")
    loss, perplexity, learning_rate = axes
    for label, values in perplexities.items():
        loss.plot(epochs, [math.log(value) for value in values], ".-", label=label)
        perplexity.plot(epochs, values, ".-", label=label)
    learning_rate.plot(epochs, [row["learning_rate"] for row in history], ".-")
    perplexity.set_yscale("log")
    perplexity.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    perplexity.yaxis.set_major_formatter(ScalarFormatter())
    perplexity.yaxis.set_minor_formatter(NullFormatter())
    titles = ("loss (nats per token)", "perplexity", "learning rate")
    for axis, title in zip(axes, titles, strict=True):
        axis.set_ylabel(title)
        axis.grid(alpha=0.3)
    loss.legend()
    perplexity.legend()
    learning_rate.set_xlabel("epoch")
    save_figure(figure, path)


def plot_gates(
    path: Path, gates: dict[str, dict], words: list[str], max_units: int = 64
) -> None:
    """Heat maps of all layers' gates, one above the other, a column for each word.

    Args:
        path: the PNG.
        gates: for each layer's name the activations of its gates by name,
            arrays of shape `(time, units)`.
        words: the word of each time step.
        max_units: rows shown; of more units, the first.
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
    axes[-1].set_xticks(range(len(words)), words, rotation=90, fontsize=8)
    save_figure(figure, path)
