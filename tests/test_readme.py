"""The README's Python examples run, one after the other."""

import re
from pathlib import Path

import keras
import numpy as np

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")


def test_examples():
    names = {}
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, names)
    assert names["model"].predict(np.array([[3, 5, 0]]), verbose=0).shape == (1, 1)
    pieces = keras.ops.concatenate([names["first"], names["second"]], axis=1)
    assert np.allclose(
        keras.ops.convert_to_numpy(pieces),
        keras.ops.convert_to_numpy(names["whole"]),
        atol=1e-5,
    )
