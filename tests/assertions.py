"""Comparison of tensors, with a message that names the tensor that differs."""

import keras
import numpy as np
from keras import ops

# The tolerance of `assert_close` for a layer of each dtype. On NumPy, Keras's `where`
# rounds float64 to float32.
ROUNDS = keras.config.backend() == "numpy"
ROUNDING = {"float32": 1e-5, "float64": 1e-6 if ROUNDS else 1e-12}


def assert_close(name, got, expected, tolerance=1e-5):
    """Asserts that two arrays have one shape and differ by rounding only.

    The greatest difference of two elements may be `tolerance` times the greatest
    absolute value of `expected`, or `tolerance` itself where that value is below 1.
    NaN and infinity in `got` or `expected` are a difference, whatever stands in the
    other.

    Args:
        name: the name of the tensor, for the message.
        got: a tensor of the active backend or an array, of any dtype.
        expected: an array, or whatever `got` may be.
        tolerance: a number.
    """
    got, expected = _as_float64(got), _as_float64(expected)
    assert got.shape == expected.shape, (
        f"{name} has shape {got.shape}, expected {expected.shape}"
    )
    if not got.size:
        return
    room = tolerance * max(1.0, np.abs(expected).max())
    with np.errstate(invalid="ignore"):
        difference = np.abs(got - expected)
    worst = np.unravel_index(np.argmax(difference), difference.shape)  # NaN is greatest
    place = ", ".join(str(int(n)) for n in worst)
    assert difference[worst] <= room < np.inf, (
        f"{name} differs by {difference[worst]:.3g}, {room:.3g} is allowed: "
        f"{name}[{place}] is {got[worst]:.9g}, expected {expected[worst]:.9g}; "
        f"{np.count_nonzero(~(difference <= room))} of {got.size} elements differ"
    )


def _as_float64(x):
    if ops.is_tensor(x):
        half = keras.backend.standardize_dtype(x.dtype) == "bfloat16"
        x = ops.convert_to_numpy(ops.cast(x, "float32") if half else x)
    return np.asarray(x, "float64")
