"""What is exported, and by which tools: the cells of the table in docs/other-tools.md.

Run as a program, it prints the table of the active backend, for LSTM beside QRNN.
"""

import itertools
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
from keras import layers

from keras_qrnn import QRNN
from keras_qrnn.layers import QRNNStack
from keras_qrnn.models import LanguageModel

BACKEND = keras.config.backend()
WORDS, FEATURES, UNITS = 9, 3, 4
STEPS = 5  # of the models that know their number of steps


def sequence(time, layer=QRNN):
    x = inputs = keras.Input((time, FEATURES), name="x")
    x = layer(UNITS, return_sequences=True)(x)
    return keras.Model(inputs, layers.Dense(2)(x))


def classifier(time, layer=QRNN):
    words = keras.Input((time,), dtype="int32", name="words")
    x = layers.Embedding(WORDS, FEATURES, mask_zero=True)(words)
    return keras.Model(words, layers.Dense(1, "sigmoid")(layer(UNITS)(x)))


def bidirectional(time, layer=QRNN):
    x = inputs = keras.Input((time, FEATURES), name="x")
    x = layers.Masking()(x)
    x = layers.Bidirectional(layer(UNITS, return_sequences=True))(x)
    return keras.Model(inputs, layers.Bidirectional(layer(UNITS))(x))


def states(time, layer=QRNN):
    x = keras.Input((time, FEATURES), name="x")
    shapes = [(UNITS,), (2, FEATURES)] if layer is QRNN else [(UNITS,), (UNITS,)]
    given = [keras.Input(shape, name=f"state_{n}") for n, shape in enumerate(shapes)]
    more = {"window": 3, "pooling": "ifo"} if layer is QRNN else {}
    layer = layer(UNITS, return_sequences=True, return_state=True, **more)
    return keras.Model([x, *given], list(layer(x, initial_state=given)))


def stack(time):
    words = keras.Input((time,), dtype="int32", name="words")
    x = layers.Embedding(WORDS, FEATURES, mask_zero=True)(words)
    return keras.Model(words, QRNNStack(UNITS, 2, [3, 1], dense=True)(x))


def language_model(time):
    sizes = {"vocab_size": WORDS, "emb_dim": FEATURES, "units": UNITS}
    return LanguageModel(**sizes, batch_size=1, window=[2, 1]).serving_model(time=time)


MODELS = {
    each.__name__: each
    for each in (
        sequence, classifier, bidirectional, states, stack, language_model
    )
}  # fmt: skip


def values(model, batch, steps):
    """Inputs for a model; some steps are padding."""
    rng = np.random.default_rng(batch + steps)
    arrays = []
    for given in model.inputs:
        shape = [batch, *given.shape[1:]]
        shape = [steps if size is None else size for size in shape]
        if given.dtype == "int32":
            arrays.append(rng.integers(1, WORDS, shape).astype("int32"))
        else:
            arrays.append(rng.normal(size=shape).astype("float32"))
    arrays[0][0, 1:3] = 0
    return arrays


def saved_model(model, directory):
    import tensorflow as tf

    model.export(str(directory), verbose=False)
    loaded = tf.saved_model.load(str(directory))
    return lambda arrays: loaded.serve(arrays if len(arrays) > 1 else arrays[0])


def onnx(model, directory):
    from onnxruntime import InferenceSession

    path = str(directory / "model.onnx")
    model.export(path, format="onnx", verbose=False)
    session = InferenceSession(path)
    names = [each.name for each in session.get_inputs()]
    return lambda arrays: session.run(None, dict(zip(names, arrays, strict=True)))


def openvino(model, directory):
    import openvino as ov

    path = str(directory / "model.xml")
    model.export(path, format="openvino", verbose=False)
    compiled = ov.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    # From TensorFlow, further outputs come behind those of the model.
    return lambda arrays: list(compiled(arrays).values())[: len(model.outputs)]


def torch_export(model, directory):
    import torch

    batch = torch.export.Dim("batch")
    time = torch.export.Dim("time")
    shapes = [
        {0: batch} | ({1: time} if given.shape[1] is None else {})
        for given in model.inputs
    ]
    arrays = values(model, 2, 4)
    given = tuple(map(torch.tensor, arrays))
    if len(given) > 1:
        given, shapes = (list(given),), [shapes]
    exported = torch.export.export(model, given, dynamic_shapes=(tuple(shapes),))
    torch.export.save(exported, directory / "model.pt2")
    program = torch.export.load(directory / "model.pt2").module()

    def run(arrays):
        arrays = list(map(torch.tensor, arrays))
        return program(arrays if len(arrays) > 1 else arrays[0])

    return run


TOOLS = {
    "tensorflow": [saved_model, onnx, openvino],
    "jax": [saved_model, onnx],
    "torch": [torch_export, onnx, openvino],
}


def check(tool, model, directory):
    """Exports and compares, at other sizes than those that a tool may have traced."""
    sizes = [(2, STEPS), (3, STEPS)]
    if model.inputs[0].shape[1] is None:
        sizes = [(2, STEPS), (1, 1), (3, 20)]
    cases = [values(model, *size) for size in sizes]
    model(cases[0] if len(model.inputs) > 1 else cases[0][0])  # as Keras asks for
    wanted = [keras.tree.flatten(model.predict(arrays, verbose=0)) for arrays in cases]
    run = tool(model, directory)
    for size, arrays, want in zip(sizes, cases, wanted, strict=True):
        got = keras.tree.flatten(run(arrays))
        assert len(got) == len(want)
        for one, expected in zip(got, want, strict=True):
            one = np.asarray(one.detach() if hasattr(one, "detach") else one)
            assert one.shape == expected.shape, (size, one.shape, expected.shape)
            difference = np.abs(one - expected).max()
            assert difference < 1e-5, (size, difference)


def main():
    """Arguments: which models, tools and layers; all that have no name in them."""
    chosen = set(sys.argv[1:])

    def of(names):
        return [name for name in names if name in chosen or not chosen & set(names)]

    tools = {tool.__name__: tool for tool in TOOLS[BACKEND]}
    kinds = {"QRNN": QRNN, "LSTM": layers.LSTM}
    for tool, name, kind in itertools.product(of(tools), of(MODELS), of(kinds)):
        if kind == "LSTM" and name in ("stack", "language_model"):
            continue
        more = {} if kind == "QRNN" else {"layer": kinds[kind]}
        for time in (STEPS, None):
            keras.utils.set_random_seed(0)
            place = tempfile.TemporaryDirectory()
            try:
                with place as directory:
                    check(tools[tool], MODELS[name](time, **more), Path(directory))
                result = "right"
            except Exception as error:  # noqa: BLE001 (of any tool)
                words = " ".join(str(error).split())
                result = f"{type(error).__name__}: {words[:300]}"
            cell = f"{BACKEND:11}{tool:13}{kind:5}{name:15}"
            print(f"{cell} time={time!s:5}{result}", flush=True)


if __name__ == "__main__":
    main()
