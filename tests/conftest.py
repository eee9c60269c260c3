import os

# float64 layers need it on JAX; the other backends do not read it.
os.environ.setdefault("JAX_ENABLE_X64", "1")

import hypothesis
import keras
import pytest

# Compilation makes the first example of a test slow: no deadline.
hypothesis.settings.register_profile(
    "default", deadline=None, max_examples=25, derandomize=True, print_blob=True
)
hypothesis.settings.load_profile("default")


@pytest.fixture(autouse=True)
def _seed():
    keras.utils.set_random_seed(0)
    yield
    keras.utils.clear_session(free_memory=False)
