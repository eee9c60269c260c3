"""The pictures of a run."""

import numpy as np
import pytest

from keras_qrnn.training import plots
from tests.examples.programs import script


@pytest.mark.one_backend
def test_the_path_of_a_picture(tmp_path):
    assert plots.figure_path("out", str(tmp_path / "a.PNG")) == tmp_path / "a.PNG"
    for name in ("", "noext", "a.xyz", ".png"):
        with pytest.raises(ValueError, match="Option `out` must"):
            plots.figure_path("out", name)


@pytest.mark.one_backend
def test_the_figure_of_the_paper(tmp_path, capsys):
    draw = script("draw_qrnn").main
    assert draw(["--out_filename", str(tmp_path / "new" / "qrnn.svg")]) == 0
    assert b"<svg" in (tmp_path / "new" / "qrnn.svg").read_bytes()
    for name in ("", "noext", "/proc/x/y.png"):
        assert draw(["--out_filename", name]) == 2
        error = capsys.readouterr().err
        assert error.startswith("draw_qrnn.py: error: ") and error.count("\n") == 1


@pytest.mark.one_backend
def test_symbols_of_an_attention_do_not_overlap(tmp_path, monkeypatch):
    figures = []

    def save(figure, path):
        figures.append(figure)
        figure.draw_without_rendering()

    monkeypatch.setattr(plots, "save_figure", save)
    source, target = [*"Ein Hund rennt.", "<eos>"], [*"A dog runs.", "<eos>"]
    weights = np.ones((len(target), len(source)))
    plots.plot_attention(tmp_path / "a.png", weights, source, target)
    axis = figures[0].axes[0]
    for labels, side in ((axis.get_xticklabels(), 0), (axis.get_yticklabels(), 1)):
        boxes = [label.get_window_extent() for label in labels]
        centers = [(box.min[side] + box.max[side]) / 2 for box in boxes]
        halves = [(box.max[side] - box.min[side]) / 2 for box in boxes]
        for n in range(len(boxes) - 1):
            gap = abs(centers[n + 1] - centers[n]) - halves[n] - halves[n + 1]
            assert gap > -1, (side, n, gap)  # pixels
    plots.pyplot().close(figures[0])
