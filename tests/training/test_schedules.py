"""The one-cycle schedule of learning rate and momentum."""

import math

import keras
import numpy as np
import pytest

from keras_qrnn.training.schedules import OneCycle


def values(schedule, count):
    return [float(keras.ops.convert_to_numpy(schedule(n))) for n in range(count)]


def test_rises_holds_falls_and_anneals():
    schedule = OneCycle(1.0, 20, start=0.2, end=0.0, rise=0.2, hold=0.1, anneal=0.25)
    found = values(schedule, 24)
    expected = np.interp(range(24), [0, 4, 6, 15, 20], [0.2, 1.0, 1.0, 0.2, 0.0])
    assert np.allclose(found, expected, atol=1e-6)


def test_parts_may_be_empty():
    found = values(OneCycle(1.0, 10, start=0.5, rise=0.0, anneal=0.0), 12)
    assert np.allclose(found, [1 - 0.05 * n for n in range(10)] + [0.001] * 2)


def test_a_momentum_falls_where_the_rate_rises():
    parts = {"rise": 0.3, "hold": 0.1, "anneal": 0.2}
    rate = values(OneCycle(1.0, 50, **parts), 40)
    momentum = values(OneCycle(0.7, 50, 0.8, 0.8, **parts), 50)
    assert np.argmax(rate) == np.argmin(momentum) == 15
    assert np.allclose(momentum[40:], 0.8)


def test_config():
    schedule = OneCycle(0.1, 10, rise=0.5, hold=0.1)
    copy = OneCycle.from_config(schedule.get_config())
    assert copy.get_config() == schedule.get_config()
    assert schedule.start == pytest.approx(0.01)
    assert schedule.end == pytest.approx(1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "`steps` must be a positive integer"),
        ({"peak": math.inf}, "`peak` must be 0 or a positive number"),
        ({"end": -1.0}, "`end` must be 0 or a positive number"),
        ({"rise": -0.1}, "`rise`, `hold` and `anneal` must not be negative"),
        ({"rise": 0.5, "anneal": 0.5}, "sum must be below 1"),
        ({"rise": 0.5, "hold": math.nan}, "`rise`, `hold` and `anneal`"),
    ],
)
def test_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        OneCycle(**({"peak": 1.0, "steps": 10} | change))
