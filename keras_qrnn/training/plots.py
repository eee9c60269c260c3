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
            "pip install keras-qrnn[lm]"
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
    epochs = [row["epoch"] for row in history]
    panels = {
        "loss (nats per token)": ("val_loss",),
        "perplexity": ("perplexity", "val_perplexity"),
        "learning rate": ("learning_rate",),
    }
    figure, axes = pyplot().subplots(3, figsize=(7, 8), sharex=True, layout="tight")
    for axis, (title, names) in zip(axes, panels.items(), strict=True):
        for name in names:
            label = "validation" if name.startswith("val_") else "training"
            axis.plot(epochs, [row[name] for row in history], ".-", label=label)
        if "loss" in title:
            training = [math.log(row["perplexity"]) for row in history]
            axis.plot(epochs, training, ".-", label="training")
        axis.set_ylabel(title)
        axis.grid(alpha=0.3)
        if title != "learning rate":
            axis.legend()
        if title == "perplexity":
            axis.set_yscale("log")
    axes[-1].set_xlabel("epoch")
    save_figure(figure, path)


def plot_gates(
    path: Path, gates: dict[str, dict], words: list[str], max_units: int = 64
) -> None:
    """A heat map of each layer's gates, a column for each word.

    Args:
        path: the PNG.
        gates: for each layer's name the activations of its gates by name,
            arrays of shape `(time, units)`.
        words: the word of each time step.
        max_units: rows shown; of more units, the first.
    """
    rows, columns = len(gates), max(len(layer) for layer in gates.values())
    figure, axes = pyplot().subplots(
        rows,
        columns,
        figsize=(columns * max(4, len(words) * 0.25), rows * 4.5),
        squeeze=False,
        layout="constrained",
    )
    for row, (name, layer) in zip(axes, gates.items(), strict=True):
        for axis, (gate, values) in zip(row, layer.items(), strict=True):
            low = -1 if gate == "z" else 0
            image = axis.imshow(
                values[:, :max_units].T,
                aspect="auto",
                interpolation="nearest",
                cmap="RdBu_r" if low else "viridis",
                vmin=low,
                vmax=1,
            )
            axis.set_title(f"{name}: {gate}")
            axis.set_xticks(range(len(words)), words, rotation=90, fontsize=7)
            axis.set_ylabel("unit")
            figure.colorbar(image, ax=axis)
    save_figure(figure, path)
