"""What a backend runs on a GPU: the tests of the ops and the layer again, on the CPU.

On PyTorch the Triton kernels, by Triton's interpreter; on JAX and TensorFlow scans of
logarithmically many steps.
"""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_qrnn import QRNN
from keras_qrnn.ops.dispatch import backend as active
from tests import reference, test_layer, test_ops

BACKEND = keras.config.backend()

if BACKEND == "numpy":
    pytest.skip("the NumPy backend has no GPU", allow_module_level=True)
if BACKEND == "torch":
    pytest.importorskip("triton", reason="Triton is not installed")


@pytest.fixture(scope="module", autouse=True)
def _as_on_a_gpu():
    with pytest.MonkeyPatch.context() as patch:
        if BACKEND == "torch":
            patch.setattr(active, "_kernels", lambda tensor: active._triton())
        elif BACKEND == "tensorflow":
            patch.setattr(active, "_has_gpu", lambda: True)
        else:
            import jax

            scan = jax.jit(active._associative, static_argnums=3)
            patch.setattr(active, "_scan", scan)
            jax.clear_caches()
        yield
    if BACKEND == "jax":
        jax.clear_caches()


test_scan_values = test_ops.test_scan_values
test_scan_gradients = test_ops.test_scan_gradients
test_scan_accumulates = test_ops.test_scan_accumulates
test_pool_values_and_gradients = test_ops.test_pool_values_and_gradients
test_second_gradients = test_ops.test_second_gradients
test_second_gradients_of_the_scan = test_ops.test_second_gradients_of_the_scan
test_values = test_layer.test_values
test_gradients = test_layer.test_gradients
test_inference_in_pieces = test_layer.test_inference_in_pieces
test_dtype_policies = test_layer.test_dtype_policies
test_gradients_with_a_zoneout_mask = test_layer.test_gradients_with_a_zoneout_mask
test_other_activations = test_layer.test_other_activations


@pytest.mark.skipif(BACKEND != "torch", reason="PyTorch's kernels")
def test_kernels_compile_for_cuda(tmp_path):
    """The interpreter runs what a GPU's compiler may refuse."""
    environment = os.environ | {
        "TRITON_INTERPRET": "0",
        "TRITON_CACHE_DIR": str(tmp_path),
    }
    command = [sys.executable, "-m", "tests.compile_kernels"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    sizes = [int(line.split()[-1]) for line in done.stdout.splitlines()]
    assert len(sizes) == 26
    assert min(sizes) > 1000


@pytest.mark.skipif(BACKEND != "tensorflow", reason="a graph of TensorFlow")
@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("shape", [(None, 37, 3), (None, 37, None), (None, None, 3)])
def test_graph_of_unknown_sizes(shape, jit_compile):
    import tensorflow as tf

    arrays = test_ops.scan_arguments((2, 37, 3))
    scan = tf.function(
        lambda *tensors: active.linear_scan(*tensors, False),
        input_signature=[
            tf.TensorSpec(shape),
            tf.TensorSpec(shape),
            tf.TensorSpec((None, shape[2])),
        ],
        jit_compile=jit_compile,
    )
    test_ops.assert_close(
        scan(*map(np.float32, arrays)), reference.linear_scan(*arrays)
    )


@pytest.mark.parametrize("time", [20, None])
def test_compiled_training(time):
    x, y = np.ones((4, 20, 3), "float32"), np.zeros((4, 20, 2), "float32")
    model = keras.Sequential(
        [keras.Input((time, 3)), QRNN(2, return_sequences=True, zoneout=0.1)]
    )
    model.compile("sgd", "mse", jit_compile=BACKEND != "torch")
    losses = model.fit(x, y, epochs=3, verbose=0).history["loss"]
    assert losses[2] < losses[0]
