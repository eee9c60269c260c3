"""TensorFlow: what is exported runs without this package, in any program."""

import keras
import numpy as np
import pytest

if keras.config.backend() != "tensorflow":
    pytest.skip("exports of TensorFlow", allow_module_level=True)

import tensorflow as tf

from keras_qrnn import QRNN
from tests.assertions import assert_close


def model_and_values(time):
    masked = keras.Input((time, 3))
    x = keras.layers.Masking()(masked)
    x = keras.layers.Bidirectional(QRNN(4, 3, return_sequences=True))(x)
    model = keras.Model(masked, QRNN(5, pooling="ifo")(x))
    x = np.random.default_rng(0).normal(size=(2, 9, 3)).astype("float32")
    x[0, 6:] = 0
    return model, x, model.predict(x, verbose=0)


@pytest.fixture(scope="module", params=[9, None])
def exported(request):
    return model_and_values(request.param)


def test_saved_model_of_any_batch(exported, tmp_path):
    """The gradient is saved too: a loaded model can be trained further."""
    model, x, want = exported
    model.export(tmp_path, verbose=False)
    loaded = tf.saved_model.load(tmp_path)
    assert_close("outputs", loaded.serve(x), want, 1e-6)
    assert_close("outputs of one row", loaded.serve(x[1:]), want[1:], 1e-6)
    x = tf.constant(x)
    with tf.GradientTape() as tape, tf.GradientTape() as own:
        tape.watch(x)
        own.watch(x)
        again, outputs = loaded.serve(x), model(x)
    expected = own.gradient(outputs, x)
    assert_close("d_x of what was loaded", tape.gradient(again, x), expected)


@pytest.mark.parametrize("program", ["tf2onnx.convert", "keras.src.export.openvino"])
def test_graph_for_other_programs(exported, program):
    """What these modules trace has no function that XLA compiles."""
    model, x, want = exported
    spec = tf.TensorSpec((None, *model.inputs[0].shape[1:]))
    function = tf.function(lambda x: model(x), input_signature=[spec], autograph=False)
    scope = {"__name__": program, "function": function}
    exec("traced = function.get_concrete_function()", scope)  # as by that module
    traced = scope["traced"]
    definition = traced.graph.as_graph_def()
    for function in definition.library.function:
        assert not function.attr["_XlaMustCompile"].b
        assert not [n.op for n in function.node_def if n.op.startswith("Xla")]
    assert not [n.op for n in definition.node if n.op.startswith("Xla")]
    assert_close("outputs", traced(tf.constant(x)), want)


def test_onnx_of_any_batch(exported, tmp_path):
    pytest.importorskip("tf2onnx")
    runtime = pytest.importorskip("onnxruntime")
    model, x, want = exported
    path = str(tmp_path / "model.onnx")
    model.export(path, format="onnx", verbose=False)
    session = runtime.InferenceSession(path)
    name = session.get_inputs()[0].name
    for rows in (x, x[1:]):
        [outputs] = session.run(None, {name: rows})
        assert_close("outputs", outputs, want[-len(rows) :])


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
def test_litert_needs_no_operations_of_tensorflow():
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
    assert_close("outputs", interpreter.get_tensor(found["index"]), want, 1e-6)
