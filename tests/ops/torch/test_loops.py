"""PyTorch's loops in place, which run without Numba and without a GPU.

Their gradients are tested in `tests/ops/test_scan.py` and `test_pooling.py`:
`tests/conftest.py` turns Numba off there.
"""

import keras
import numpy as np
import pytest
from keras import ops

if keras.config.backend() != "torch":
    pytest.skip("loops of PyTorch", allow_module_level=True)

import torch

import keras_qrnn.ops.torch as torch_ops
from tests.assertions import assert_close
from tests.ops.test_pooling import pool_arguments


@pytest.mark.parametrize("update_scale", [None, 0.75, "mask"])
@pytest.mark.parametrize("time", [1, 7, 70])
@pytest.mark.parametrize("pooling", ["f", "fo", "ifo"])
def test_pool_in_place_equals_the_other(pooling, time, update_scale):
    *gates, state = pool_arguments(pooling, (2, time, 3), activated=False)
    packed = torch.tensor(np.concatenate(gates, axis=-1))
    if update_scale == "mask":
        update_scale = torch.tensor(
            np.random.default_rng(1).uniform(size=gates[0].shape) > 0.3
        )
    arguments = torch.tensor(state), update_scale, pooling, True
    want = torch_ops.pool(packed.clone(), *arguments)
    with torch.no_grad():
        got = torch_ops.pool(packed.clone(), *arguments)
    for name, g, w in zip(("outputs", "last"), got, want, strict=True):
        assert_close(name, g, ops.convert_to_numpy(w))
        assert g.untyped_storage().nbytes() == g.nbytes
