"""JAX with Flax's NNX, which Keras takes with `KERAS_NNX_ENABLED=true`."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

PROGRAM = """
import keras, numpy as np
from flax import nnx
from keras_qrnn import QRNN, QRNNStack
from keras_qrnn.layers import StatefulLSTM

assert keras.config.is_nnx_enabled()
x = np.random.default_rng(0).normal(size=(4, 5, 3)).astype("float32")
step = nnx.jit(lambda layer, x: layer(x))
for layer in (
    QRNN(2, stateful=True),
    QRNNStack(2, 2, dense=True, stateful=True),
    StatefulLSTM(2, stateful=True),
):
    expected = [np.asarray(layer(x)) for _ in range(2)]
    layer.reset_state()
    got = [np.asarray(step(layer, x)) for _ in range(2)]
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert abs(got[1] - got[0]).max() > 1e-3
model = keras.Sequential([keras.Input(batch_shape=(4, 5, 3)), QRNN(2, stateful=True)])
model.compile("sgd", "mse")
model.fit(x, np.ones((4, 2)), batch_size=4, verbose=0)
assert all(abs(np.asarray(state.value)).max() > 0 for state in model.layers[0].states)
"""


@pytest.mark.skipif(keras.config.backend() != "jax", reason="NNX is JAX's")
def test_a_stateful_layer_moves_under_nnx_jit():
    """Needs `pip install flax`, which the environments of the tests do not have."""
    pytest.importorskip("flax")
    subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"KERAS_NNX_ENABLED": "true"},
        cwd=Path(__file__).parents[2],
        check=True,
    )
