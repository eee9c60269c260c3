"""Draws how an LSTM and a QRNN compute a sequence: figure 1 of arXiv 1611.01576.

python examples/draw_qrnn.py --out_filename examples/figures/qrnn.png
"""

import sys
from pathlib import Path

try:
    from keras_qrnn.training.command_line import Parser, run_command
    from keras_qrnn.training.plots import figure_path, pyplot, save_figure
except KeyboardInterrupt:  # the imports take seconds
    sys.exit(130)

STEPS = 5
HEAVY, LIGHT = "#d1495b", "#3c78a8"


def draw(path: Path) -> None:
    figure, axes = pyplot().subplots(1, 2, figsize=(10.5, 3.6), layout="constrained")
    for axis in axes:
        axis.set(xlim=(-0.6, STEPS - 0.3), ylim=(-0.55, 2.75))
        axis.axis("off")
        for t in range(STEPS):
            arrow(axis, (t, -0.15), (t, 0.3))
            axis.text(t, -0.25, f"$x_{t + 1}$", ha="center", va="top", size=12)
            arrow(axis, (t, 1.95), (t, 2.3))
            axis.text(t, 2.35, f"$h_{t + 1}$", ha="center", va="bottom", size=12)
    lstm, qrnn = axes
    lstm.set_title("LSTM: every step waits for the matrix product before it")
    for t in range(STEPS):
        block(lstm, t - 0.36, 0.3, 0.72, 0.6, HEAVY, "$W x_t$\n$+ U h_{t-1}$")
        block(lstm, t - 0.36, 1.35, 0.72, 0.6, LIGHT, "gates")
        arrow(lstm, (t, 0.9), (t, 1.35))
        if t < STEPS - 1:
            arrow(lstm, (t + 0.36, 1.65), (t + 0.82, 0.9))
    qrnn.set_title("QRNN: one convolution for all steps, a cheap recurrence")
    block(
        qrnn, -0.4, 0.3, STEPS - 0.2, 0.6, HEAVY,
        "causal convolution:  z, f, o of all steps at once",
    )  # fmt: skip
    for t in range(STEPS):
        block(qrnn, t - 0.3, 1.35, 0.6, 0.6, LIGHT, "pool")
        arrow(qrnn, (t, 0.9), (t, 1.35))
        if t < STEPS - 1:
            arrow(qrnn, (t + 0.3, 1.65), (t + 0.7, 1.65))
            qrnn.text(t + 0.5, 1.75, f"$c_{t + 1}$", ha="center", size=10)
    save_figure(figure, path)


def block(axis, x, y, width, height, color, label) -> None:  # noqa: ANN001
    rectangle = pyplot().Rectangle((x, y), width, height, color=color, alpha=0.85)
    axis.add_patch(rectangle)
    middle = x + width / 2, y + height / 2
    axis.text(*middle, label, ha="center", va="center", color="white", size=10)


def arrow(axis, start, end) -> None:  # noqa: ANN001
    axis.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": "#444444"})


def main(argv: list[str] | None = None) -> int:
    parser = Parser("draw_qrnn.py", description="Draws an LSTM and a QRNN.")
    parser.add_argument(
        "--out_filename",
        default="examples/figures/qrnn.png",
        help="the picture (default examples/figures/qrnn.png)",
    )
    name = parser.parse_args(argv).out_filename
    return run_command("draw_qrnn.py", lambda: draw(figure_path("out_filename", name)))


if __name__ == "__main__":
    sys.exit(main())
