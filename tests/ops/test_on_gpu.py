"""What JAX and TensorFlow run on a GPU: the tests of the ops and the layer again.

Here the GPU's scans, of a logarithmic number of steps, run on the CPU. For PyTorch see
`tests/ops/torch/test_triton.py`.
"""

import keras
import numpy as np
import pytest
from hypothesis import given, settings

from keras_qrnn import QRNN
from keras_qrnn.ops.backend import backend as active
from keras_qrnn.ops.equations import GATES
from tests import reference
from tests.assertions import assert_close
from tests.layers import test_qrnn as test_layer
from tests.ops import test_pooling, test_scan

BACKEND = keras.config.backend()

if BACKEND not in ("jax", "tensorflow"):
    pytest.skip("other backends have no such scan", allow_module_level=True)


@pytest.fixture(scope="module", autouse=True)
def _as_on_a_gpu():
    with pytest.MonkeyPatch.context() as patch:
        if BACKEND == "tensorflow":
            from keras_qrnn.ops import tensorflow_graph

            for module in (active, tensorflow_graph):
                patch.setattr(module, "has_gpu", lambda: True)
        else:
            import jax

            def default(*arguments, default, **by_platform):
                return default(*arguments)

            patch.setattr(jax.lax, "platform_dependent", default)
            forget_what_is_traced()
            assert loops() == {False}
        yield
    if BACKEND == "jax":
        forget_what_is_traced()
        assert loops() == {True}


def forget_what_is_traced():
    """`jax.clear_caches` would forget all that the session has compiled."""
    for function in vars(active).values():
        for each in (function, getattr(function, "fun", None)):
            if hasattr(each, "clear_cache"):
                each.clear_cache()


def loops():
    """Whether JAX's functions take one step after the other: True, False or both."""
    import jax

    x, kernel = np.ones((2, 5, 3), "float32"), np.ones((1, 3, 6), "float32")
    programs = (
        jax.make_jaxpr(lambda x: active.linear_scan(x, x, x[:, 0], False))(x),
        jax.make_jaxpr(lambda x: active.conv_pool(x, kernel, None, x[:, 0], None, "f"))(
            x
        ),
    )
    return {"scan[" in str(each) or "while[" in str(each) for each in programs}


def again(test):
    """A test of the layer with fewer of its cases: what differs is the scan."""
    cases = given(test_layer.cases())
    return settings(max_examples=3)(cases(test.hypothesis.inner_test))


test_scan_values = test_scan.test_scan_values
test_scan_gradients = test_scan.test_scan_gradients
test_scan_accumulates = test_scan.test_scan_accumulates
test_pool_values_and_gradients = test_pooling.test_pool_values_and_gradients
test_second_gradients = test_pooling.test_second_gradients
test_second_gradients_of_the_scan = test_scan.test_second_gradients_of_the_scan
test_values = again(test_layer.test_values)
test_gradients = again(test_layer.test_gradients)
test_dtype_policies = test_layer.test_dtype_policies
test_gradients_with_a_zoneout_mask = test_layer.test_gradients_with_a_zoneout_mask
test_other_activations = test_layer.test_other_activations


@pytest.mark.parametrize("pooling", GATES)
@pytest.mark.parametrize(("window", "time"), [(1, 9), (5, 2)])
def test_inference_in_pieces(window, time, pooling):
    """Few of the layer's cases: what differs is the scan, by length and pooling."""
    test_layer.test_inference_in_pieces(window, time, "causal", pooling, True)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="a graph of TensorFlow")
@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("shape", [(None, 37, 3), (None, 37, None), (None, None, 3)])
def test_graph_of_unknown_sizes(shape, jit_compile):
    import tensorflow as tf

    arrays = test_scan.scan_arguments((2, 37, 3))
    scan = tf.function(
        lambda *tensors: active.linear_scan(*tensors, False),
        input_signature=[
            tf.TensorSpec(shape),
            tf.TensorSpec(shape),
            tf.TensorSpec((None, shape[2])),
        ],
        jit_compile=jit_compile,
    )
    assert_close(
        "states", scan(*map(np.float32, arrays)), reference.linear_scan(*arrays)
    )


@pytest.mark.parametrize("time", [20, None])
def test_compiled_training(time):
    x, y = np.ones((4, 20, 3), "float32"), np.zeros((4, 20, 2), "float32")
    model = keras.Sequential(
        [keras.Input((time, 3)), QRNN(2, return_sequences=True, zoneout=0.1)]
    )
    model.compile("sgd", "mse", jit_compile=True)
    losses = model.fit(x, y, epochs=3, verbose=0).history["loss"]
    assert losses[2] < losses[0]
