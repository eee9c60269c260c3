"""Shared by all tests: settings, a small corpus, tests that run on one backend."""

import atexit
import gc
import os
import shutil
import tempfile

# float64 layers need it on JAX; the other backends do not read it.
os.environ.setdefault("JAX_ENABLE_X64", "1")
# Most of the time of the tests is compilation by XLA, of each shape. Optimizations that
# a small array does not need are left out.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# JAX sees four devices, for tests of several devices; all else runs on the first.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4 " + os.environ.get(
    "XLA_FLAGS", ""
)
# XLA's own flags save more: an older generator of loops, which compiles in half the
# time, and on TensorFlow no optimizations by LLVM. XLA ends the process at a flag that
# it does not know. So each stands only where the oldest allowed version knows it.
if os.environ.get("KERAS_BACKEND") == "jax":
    os.environ["XLA_FLAGS"] = (
        "--xla_cpu_use_fusion_emitters=false " + os.environ["XLA_FLAGS"]
    )
elif os.environ.get("KERAS_BACKEND") == "tensorflow":
    os.environ["XLA_FLAGS"] = (
        "--xla_backend_optimization_level=0 "
        "--xla_llvm_disable_expensive_passes=true " + os.environ["XLA_FLAGS"]
    )
# PyTorch's threads spin for a while after each operation. Where other programs need
# the cores, as several environments at a time in .ci/run do, that made tests 15 times
# slower. Read when libgomp is loaded, so before Keras is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# What JAX has compiled once in a session, here or in a subprocess, it finds again: a
# run of the training script then takes half the time.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _compiled = tempfile.mkdtemp(prefix="keras_qrnn-jax-")
    atexit.register(shutil.rmtree, _compiled, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import hypothesis
import keras
import pytest

from keras_qrnn.data import load_corpus

if keras.config.backend() == "torch":
    import torch

    # Read when a kernel is defined: on a machine without a GPU NumPy runs them.
    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")
    # On a GPU float32 is to mean float32: the reference knows no TensorFloat-32.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
elif keras.config.backend() == "jax":
    import jax

    jax.config.update("jax_default_matmul_precision", "highest")
elif keras.config.backend() == "tensorflow":
    import tensorflow as tf

    tf.config.experimental.enable_tensor_float_32_execution(False)
    # Two devices, for tests of `tf.distribute`; all else runs on the first.
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * 2,
    )

# How many examples Hypothesis draws for each test: fewer where XLA compiles each shape.
COMPILED = keras.config.backend() in ("jax", "tensorflow")
EXAMPLES = int(os.environ.get("KERAS_QRNN_EXAMPLES", "10" if COMPILED else "25"))
# Compilation makes the first example of a test slow: no deadline.
hypothesis.settings.register_profile(
    "default", deadline=None, max_examples=EXAMPLES, derandomize=True, print_blob=True
)
hypothesis.settings.load_profile("default")


def pytest_configure(config):
    config.addinivalue_line(
        "markers",
        "one_backend(name='numpy'): the test is the same on all backends and runs on "
        "this one only: NumPy, whose suite is the shortest, or PyTorch if it trains.",
    )


def pytest_collection_modifyitems(items):
    for item in items:
        marker = item.get_closest_marker("one_backend")
        if marker is not None:
            name = marker.args[0] if marker.args else "numpy"
            if keras.config.backend() != name:
                reason = f"runs on {name}, for all backends"
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_collection_finish():
    """What is imported stays: the collector need not look at it again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@pytest.fixture(scope="session", autouse=True)
def _without_numba():
    """The tests run as without Numba, but those in tests/ops/torch/test_numba.py."""
    with pytest.MonkeyPatch.context() as patch:
        if keras.config.backend() == "torch":
            patch.setattr("keras_qrnn.ops.torch.dispatch._numba", lambda: None)
        yield


@pytest.fixture(autouse=True)
def _seed():
    keras.utils.set_random_seed(0)
    yield
    keras.utils.clear_session(free_memory=False)


@pytest.fixture(scope="session")
def two_replicas():
    """A MirroredStrategy of two CPUs. The session has only this one.

    Each new strategy of TensorFlow numbers its collective operations from the same
    number. The runtime remembers the shapes of the first: a second strategy with a
    model of another size fails.
    """
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.fixture(scope="session")
def small_ptb(tmp_path_factory):
    """A PTB-shaped corpus of a few hundred lines, so that epochs are short."""
    directory = tmp_path_factory.mktemp("ptb")
    corpus = load_corpus("sample")
    for split, lines in (("train", 400), ("valid", 40), ("test", 40)):
        text = "\n".join(getattr(corpus, split)[:lines]) + "\n"
        (directory / f"{split}.txt").write_text(text)
    return directory
