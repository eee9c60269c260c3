"""ChronoBias: its draws, where they stand, and its way through layers and files."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_qrnn import QRNN, QRNNStack
from keras_qrnn.initializers import ChronoBias
from tests.reference import GATES

UNITS = 4000


def gates_of(pooling, bias):
    """The biases of each gate, by its name."""
    bias = ops.convert_to_numpy(ops.cast(bias, "float32"))
    return dict(zip(GATES[pooling], np.split(bias, len(GATES[pooling])), strict=True))


@pytest.mark.parametrize("pooling", GATES)
def test_the_draws_and_their_places(pooling):
    bias = ChronoBias(200, seed=1)((len(GATES[pooling]) * UNITS,), pooling=pooling)
    gates = gates_of(pooling, bias)
    # f keeps the previous cell: exp(bias) is the memory's length in steps, less one.
    lengths = np.exp(gates["f"])
    assert 1 <= lengths.min() < 1.5 and 198.5 < lengths.max() < 199.001
    # The distribution function of 4,000 uniform draws is off by 0.03 at most.
    uniform = (np.sort(lengths) - 1) / 198
    assert np.abs(uniform - np.arange(UNITS) / UNITS).max() < 0.03
    if pooling == "ifo":
        np.testing.assert_array_equal(gates.pop("i"), -gates["f"])
    del gates["f"]
    assert all((others == 0).all() for others in gates.values())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_dtypes(dtype):
    if keras.config.backend() == "numpy" and dtype == "bfloat16":
        pytest.skip("NumPy has no bfloat16")
    bias = ChronoBias(50, seed=1)((30,), dtype, pooling="fo")
    assert keras.backend.standardize_dtype(bias.dtype) == dtype
    forget = gates_of("fo", bias)["f"]
    assert len(np.unique(forget)) == 10 and 0 <= forget.min() < forget.max() < 3.9


def test_seeds():
    def draw(initializer):
        return ops.convert_to_numpy(initializer((30,), pooling="fo"))

    one = ChronoBias(50, seed=1)
    assert (draw(one) == draw(one)).all() and (draw(one) == draw(one.clone())).all()
    assert (draw(one) != draw(ChronoBias(50, seed=2))).any()
    assert (draw(ChronoBias(50)) != draw(ChronoBias(50))).any()
    generator = ChronoBias(50, keras.random.SeedGenerator(1))
    again = keras.initializers.get(keras.initializers.serialize(generator))
    first = draw(generator)
    assert (first != draw(generator)).any() and (first == draw(again)).all()


@pytest.mark.parametrize("pooling", GATES)
def test_the_layer_passes_its_pooling(pooling, tmp_path):
    bias = ChronoBias(60, seed=1)
    layer = QRNN(5, 3, pooling, bias_initializer=bias, return_sequences=True)
    backwards = keras.layers.Bidirectional(
        QRNN(5, pooling=pooling, bias_initializer=bias)
    )
    stack = QRNNStack(
        5, 2, pooling=pooling, bias_initializer=bias, return_sequences=True
    )
    model = keras.Sequential([keras.Input((None, 3)), layer, stack, backwards])
    expected = ops.convert_to_numpy(bias(layer.bias.shape, pooling=pooling))
    model.save(tmp_path / "model.keras")
    copy = keras.models.clone_model(model)  # with weights of its own
    for each in (model, copy, keras.saving.load_model(tmp_path / "model.keras")):
        first, stack, both = each.layers
        for qrnn in (first, *stack.qrnns, both.forward_layer, both.backward_layer):
            np.testing.assert_array_equal(ops.convert_to_numpy(qrnn.bias), expected)
            assert qrnn.bias_initializer.get_config() == {"max_length": 60, "seed": 1}


@pytest.mark.one_backend
def test_a_long_memory():
    """With the gates at their biases an input fades as the memory's length says."""
    layer = QRNN(400, pooling="f", bias_initializer=ChronoBias(100, seed=1))
    layer.build((1, 101, 1))
    layer.kernel.assign(np.zeros(layer.kernel.shape))
    gone = 1 - ops.convert_to_numpy(
        layer(np.zeros((1, 100, 1), "float32"), np.ones((1, 400), "float32"))
    )
    lengths = 1 + np.exp(gates_of("f", layer.bias)["f"])
    np.testing.assert_allclose(gone[0], 1 - (1 - 1 / lengths) ** 100, atol=1e-5)
    assert 0.63 < gone.min() < 0.64  # one of 100 steps keeps 1 / e


@pytest.mark.parametrize("length", [2, 0, -5, 10.0, "100", None, True, float("nan")])
def test_bad_lengths(length):
    with pytest.raises(
        ValueError, match="`max_length` must be an integer of at least 3"
    ):
        ChronoBias(length)


def test_bad_calls():
    bias = ChronoBias(10)
    for pooling in (None, "of"):
        with pytest.raises(ValueError, match="for the `bias_initializer` of a QRNN"):
            bias((12,), pooling=pooling)
    with pytest.raises(ValueError, match="for the `bias_initializer` of a QRNN"):
        keras.layers.Dense(6, bias_initializer=bias).build((None, 2))
    for shape in ((10,), (2, 6), (None,), ()):
        with pytest.raises(ValueError, match="`shape` must be"):
            bias(shape, pooling="fo")
    with pytest.raises(ValueError, match="seed"):
        ChronoBias(10, seed="x")
