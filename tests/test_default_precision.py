"""JAX without float64, as most users run it: some of the tests again.

The others run with JAX_ENABLE_X64=1.
"""

import keras
import pytest

if keras.config.backend() != "jax":
    pytest.skip("a setting of JAX", allow_module_level=True)

import jax
from hypothesis import given, settings

from tests.layers import test_qrnn as test_layer
from tests.layers import test_qrnn_in_keras
from tests.models import test_language_model
from tests.training import test_continuous_cache


@pytest.fixture(scope="module", autouse=True)
def _without_float64():
    before = jax.config.read("jax_enable_x64")
    jax.config.update("jax_enable_x64", False)
    assert jax.numpy.ones(1, "float64").dtype == "float32"
    yield
    jax.config.update("jax_enable_x64", before)


def again(test):
    """A test of the layer with fewer of its cases, in float32."""
    cases = given(test_layer.cases(dtypes=("float32",)))
    return settings(max_examples=2)(cases(test.hypothesis.inner_test))


test_values = again(test_layer.test_values)
test_gradients = again(test_layer.test_gradients)
test_fit_carries_the_state = test_language_model.test_fit_carries_the_state
test_stream_as_the_model_reads_it = (
    test_continuous_cache.test_stream_as_the_model_reads_it
)


def test_functional_with_unknown_sizes():
    test_qrnn_in_keras.test_functional_with_unknown_sizes(True, False)


def test_mixed_precision_trains():
    test_language_model.test_mixed_precision_trains("mixed_float16")
