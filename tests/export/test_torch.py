"""PyTorch: what is exported runs without this package."""

import keras
import pytest

if keras.config.backend() != "torch":
    pytest.skip("exports of PyTorch", allow_module_level=True)

import torch

from keras_qrnn import QRNN


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("time", [5, 100])
def test_torch_export_takes_any_batch(time, strict):
    """Its program has no operation of this package."""
    layer = QRNN(4, return_sequences=True)
    x = torch.rand((2, time, 3))
    want = layer(x)
    batch = torch.export.Dim("batch")
    exported = torch.export.export(
        layer, (x,), dynamic_shapes=(({0: batch},),), strict=strict
    )
    assert "keras_qrnn" not in exported.graph_module.code
    torch.testing.assert_close(exported.module()(x), want)
    for rows in (1, 3, 1100):  # also more than are one piece, or steps of a block
        x = torch.rand((rows, time, 3))
        torch.testing.assert_close(exported.module()(x), layer(x))
