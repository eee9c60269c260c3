"""What is exported runs without this package."""

import keras
import numpy as np
import pytest

from keras_qrnn import QRNN

BACKEND = keras.config.backend()


@pytest.mark.skipif(BACKEND != "jax", reason="an export of JAX")
@pytest.mark.parametrize("window", [1, 2, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_jax_export_of_any_batch_and_time(window, masked):
    import jax
    from jax import export

    layer = QRNN(4, window, return_sequences=True)
    layer.build((None, None, 3))
    batch, time, _ = shape = export.symbolic_shape("batch, time, 3")
    arguments = [jax.ShapeDtypeStruct(shape, "float32")]
    rng = np.random.default_rng(0)
    values = [rng.normal(size=(2, 7, 3)).astype("float32")]
    if masked:
        arguments.append(jax.ShapeDtypeStruct((batch, time), "bool"))
        values.append(rng.random((2, 7)) < 0.6)

    def call(x, mask=None):
        return layer(x, mask=mask)

    exported = export.export(jax.jit(call))(*arguments)
    assert np.abs(exported.call(*values) - call(*values)).max() < 1e-6


def model_and_values(time):
    masked = keras.Input((time, 3))
    x = keras.layers.Masking()(masked)
    x = keras.layers.Bidirectional(QRNN(4, 3, return_sequences=True))(x)
    model = keras.Model(masked, QRNN(5, pooling="ifo")(x))
    x = np.random.default_rng(0).normal(size=(2, 9, 3)).astype("float32")
    x[0, 6:] = 0
    return model, x, model.predict(x, verbose=0)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="an export of TensorFlow")
@pytest.mark.parametrize("time", [9, None])
def test_saved_model_of_any_batch(time, tmp_path):
    import tensorflow as tf

    model, x, want = model_and_values(time)
    model.export(tmp_path, verbose=False)
    loaded = tf.saved_model.load(tmp_path)
    assert np.abs(loaded.serve(x) - want).max() < 1e-6
    assert np.abs(loaded.serve(x[1:]) - want[1:]).max() < 1e-6


@pytest.mark.skipif(BACKEND != "tensorflow", reason="an export of TensorFlow")
@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
def test_litert_needs_no_operations_of_tensorflow():
    import tensorflow as tf

    model, x, want = model_and_values(9)
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    interpreter = tf.lite.Interpreter(model_content=converter.convert())
    (given,), (found,) = (
        interpreter.get_input_details(),
        interpreter.get_output_details(),
    )
    interpreter.resize_tensor_input(given["index"], x.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(given["index"], x)
    interpreter.invoke()
    assert np.abs(interpreter.get_tensor(found["index"]) - want).max() < 1e-6


@pytest.mark.skipif(BACKEND != "torch", reason="an export of PyTorch")
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("time", [5, 100])
def test_torch_export_takes_any_batch(time, strict):
    """Its program has no operation of this package."""
    import torch

    layer = QRNN(4, return_sequences=True)
    x = torch.rand((2, time, 3))
    want = layer(x)
    batch = torch.export.Dim("batch")
    exported = torch.export.export(
        layer, (x,), dynamic_shapes=(({0: batch},),), strict=strict
    )
    assert "keras_qrnn" not in exported.graph_module.code
    torch.testing.assert_close(exported.module()(x), want)
    for rows in (1, 3, 1100):  # also more than are one piece, or steps of a block
        x = torch.rand((rows, time, 3))
        torch.testing.assert_close(exported.module()(x), layer(x))
