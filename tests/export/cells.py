"""What is exported, and by which tools. A cell is a case of docs/other-tools.md.

Run as a program, it prints the table of the active backend, for LSTM beside QRNN.
"""

import itertools
import os
import sys
import tempfile
from pathlib import Path

# As in tests/conftest.py. The converter from PyTorch to LiteRT needs it for tokens.
os.environ.setdefault("JAX_ENABLE_X64", "1")

import keras
import numpy as np
from keras import layers

from keras_qrnn import QRNN, AttentionQRNN, Bidirectional
from keras_qrnn.layers import QRNNStack
from keras_qrnn.models import LanguageModel

BACKEND = keras.config.backend()
WORDS, FEATURES, UNITS = 9, 3, 4
STEPS = 5  # of the models that know their number of steps


def given(time, masked, words=False):
    """An input of a model and what its first layer reads, masked or not."""
    if words:
        inputs = keras.Input((time,), dtype="int32", name="words")
        return inputs, layers.Embedding(WORDS, FEATURES, mask_zero=masked)(inputs)
    inputs = keras.Input((time, FEATURES), name="x")
    return inputs, layers.Masking()(inputs) if masked else inputs


def sequence(time, masked, layer=QRNN):
    inputs, x = given(time, masked)
    x = layer(UNITS, return_sequences=True)(x)
    return keras.Model(inputs, layers.Dense(2)(x))


def classifier(time, masked, layer=QRNN):
    inputs, x = given(time, masked, words=True)
    return keras.Model(inputs, layers.Dense(1, "sigmoid")(layer(UNITS)(x)))


def bidirectional(time, masked, layer=QRNN):
    inputs, x = given(time, masked)
    x = layers.Bidirectional(layer(UNITS, return_sequences=True))(x)
    return keras.Model(inputs, layers.Bidirectional(layer(UNITS))(x))


def states(time, masked, layer=QRNN):
    inputs, x = given(time, masked)
    shapes = [(UNITS,), (2, FEATURES)] if layer is QRNN else [(UNITS,), (UNITS,)]
    first = [keras.Input(shape, name=f"state_{n}") for n, shape in enumerate(shapes)]
    more = {"window": 3, "pooling": "ifo"} if layer is QRNN else {}
    layer = layer(UNITS, return_sequences=True, return_state=True, **more)
    return keras.Model([inputs, *first], list(layer(x, initial_state=first)))


def one_step(time, masked, layer=QRNN):
    """Its layer has no loop."""
    return states(1, masked, layer)


def language_model(time, masked, layer=QRNN):
    sizes = {"vocab_size": WORDS, "emb_dim": FEATURES, "units": UNITS}
    cell = {"window": [2, 1]} if layer is QRNN else {"cell": "lstm"}
    return LanguageModel(**sizes, **cell, batch_size=1).serving_model(time=time)


def stack(time, masked):
    inputs, x = given(time, masked, words=True)
    return keras.Model(inputs, QRNNStack(UNITS, 2, [3, 1], dense=True)(x))


def same(time, masked):
    """`padding="same"`, in a layer and in a stack."""
    inputs, x = given(time, masked)
    x = QRNN(UNITS, 3, padding="same", return_sequences=True)(x)
    return keras.Model(inputs, QRNNStack(UNITS, 2, padding="same")(x))


def context(time, masked):
    """`keras_qrnn.Bidirectional`, which hands its context to two QRNNs."""
    inputs, x = given(time, masked)
    topic = keras.Input((2,), name="topic")
    x = Bidirectional(QRNN(UNITS, return_sequences=True))(x, context=topic)
    return keras.Model([inputs, topic], x)


def attention(time, masked):
    inputs, x = given(time, masked)
    encoder = QRNN(UNITS, return_sequences=True, return_state=True)
    encoded, cell, _ = encoder(x)
    x = AttentionQRNN(UNITS, return_sequences=True)(x, encoded, cell)
    return keras.Model(inputs, x)


OF_LSTM = (sequence, classifier, bidirectional, states, one_step, language_model)
MODELS = {each.__name__: each for each in (*OF_LSTM, stack, same, context, attention)}


# Each model as a name, a number of steps or None, and whether it is masked.
CELLS = [
    (name, time, masked)
    for name, time, masked in itertools.product(MODELS, (STEPS, None), (False, True))
    if not (name == "one_step" and time is None)
    and not (name == "language_model" and masked)
]


def values(model, batch, steps):
    """Inputs for a model. Some steps are padding, and the whole of a third row."""
    rng = np.random.default_rng(batch + steps)
    arrays = []
    for each in model.inputs:
        shape = [batch, *each.shape[1:]]
        shape = [steps if size is None else size for size in shape]
        if each.dtype == "int32":
            arrays.append(rng.integers(1, WORDS, shape).astype("int32"))
        else:
            arrays.append(rng.normal(size=shape).astype("float32"))
    arrays[0][0, 1:3] = 0
    arrays[0][2:3] = 0
    return arrays


def single(arrays):
    """What a model takes: one array, or a list of several."""
    return arrays if len(arrays) > 1 else arrays[0]


def saved_model(model, directory):
    import tensorflow as tf

    model.export(str(directory), verbose=False)
    loaded = tf.saved_model.load(str(directory))
    return lambda arrays: loaded.serve(single(arrays))


def onnx(model, directory):
    from onnxruntime import InferenceSession

    path = str(directory / "model.onnx")
    model.export(path, format="onnx", verbose=False)
    session = InferenceSession(path)
    names = [each.name for each in session.get_inputs()]
    return lambda arrays: session.run(None, dict(zip(names, arrays, strict=True)))


def openvino(model, directory):
    """The file that Keras writes. From JAX it is one of ONNX."""
    import openvino as ov

    path = str(directory / "model.xml")
    if BACKEND == "jax":
        path = str(directory / "model.onnx")
        model.export(path, format="onnx", verbose=False)
    else:
        model.export(path, format="openvino", verbose=False)
    compiled = ov.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    # From TensorFlow, further outputs come behind those of the model.
    return lambda arrays: list(compiled(arrays).values())[: len(model.outputs)]


def litert(model, directory, batch=2):
    """A file of LiteRT's own operations. From PyTorch it has one batch size."""
    from ai_edge_litert.interpreter import Interpreter

    options = {}
    if BACKEND == "tensorflow":
        import tensorflow as tf

        options["target_spec"] = {"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS]}
    elif BACKEND == "torch":
        specs = [
            keras.InputSpec(dtype=each.dtype, shape=(batch, *each.shape[1:]))
            for each in model.inputs
        ]
        options["input_signature"] = [single(specs)]
    path = str(directory / "model.tflite")
    model.export(path, format="litert", verbose=False, **options)
    runner = Interpreter(path).get_signature_runner()
    names = [each.name for each in model.inputs]
    if BACKEND == "torch":
        names = sorted(runner.get_input_details(), key=lambda name: (len(name), name))

    def run(arrays):
        found = runner(**dict(zip(names, arrays, strict=True)))
        return [found[f"output_{n}"] for n in range(len(found))]

    return run


def keras_file(model, directory):
    model.save(directory / "model.keras")
    loaded = keras.saving.load_model(directory / "model.keras")
    return lambda arrays: loaded.predict(arrays, verbose=0)


def jax_export(model, directory):
    import jax
    from jax import export

    scope = export.SymbolicScope()
    shapes = [
        export.symbolic_shape(
            ", ".join(
                "batch" if n == 0 else "time" if size is None else str(size)
                for n, size in enumerate(each.shape)
            ),
            scope=scope,
        )
        for each in model.inputs
    ]
    arguments = [
        jax.ShapeDtypeStruct(shape, each.dtype)
        for shape, each in zip(shapes, model.inputs, strict=True)
    ]
    exported = export.export(jax.jit(lambda *x: model(single(x))))(*arguments)
    (directory / "model").write_bytes(exported.serialize())
    loaded = export.deserialize((directory / "model").read_bytes())
    return lambda arrays: loaded.call(*arrays)


def torch_export(model, directory):
    import torch

    batch = torch.export.Dim("batch")
    time = torch.export.Dim("time")
    shapes = [
        {0: batch} | ({1: time} if each.shape[1] is None else {})
        for each in model.inputs
    ]
    example = tuple(map(torch.tensor, values(model, 2, 4)))
    if len(example) > 1:
        example, shapes = (list(example),), [shapes]
    exported = torch.export.export(model, example, dynamic_shapes=(tuple(shapes),))
    torch.export.save(exported, directory / "model.pt2")
    program = torch.export.load(directory / "model.pt2").module()
    return lambda arrays: program(single(list(map(torch.tensor, arrays))))


TOOLS = {
    "tensorflow": [saved_model, onnx, openvino, litert, keras_file],
    "jax": [saved_model, onnx, openvino, jax_export],
    "torch": [onnx, openvino, litert, torch_export],
}


def refused(tool, time):
    """The error of a cell, as a regular expression. None if it gives the results."""
    if BACKEND == "torch" and tool is litert and time is None:
        return "failed to prepare"
    return None


def sizes(tool, time):
    """The batches and numbers of steps of a cell, other than a tool may have traced."""
    if BACKEND == "torch" and tool is litert and time is not None:
        return [(2, time)]
    return [(2, STEPS), (3, STEPS)] if time else [(2, STEPS), (1, 1), (3, 20)]


def check(tool, model, directory):
    """Exports and compares, to 1e-5.

    Raises:
        AssertionError: if the exported model gives other results.
        Exception: of the tool, if it refuses.
    """
    cases = [values(model, *size) for size in sizes(tool, model.inputs[0].shape[1])]
    model(single(cases[0]))  # as Keras asks for
    wanted = [keras.tree.flatten(model.predict(arrays, verbose=0)) for arrays in cases]
    run = tool(model, directory)
    for arrays, want in zip(cases, wanted, strict=True):
        got = keras.tree.flatten(run(arrays))
        assert len(got) == len(want)
        for one, expected in zip(got, want, strict=True):
            one = np.asarray(one.detach() if hasattr(one, "detach") else one)
            of = arrays[0].shape[:2], one.shape, expected.shape
            assert one.shape == expected.shape, of
            assert np.abs(one - expected).max() < 1e-5, of


def main():
    """Arguments: which models, tools and layers; all that have no name in them."""
    chosen = set(sys.argv[1:])

    def is_chosen(name, names):
        return name in chosen or not chosen & set(names)

    tools = {tool.__name__: tool for tool in TOOLS[BACKEND]}
    kinds = {"QRNN": QRNN, "LSTM": layers.LSTM}
    for tool, cell, kind in itertools.product(tools, CELLS, kinds):
        name, time, masked = cell
        if kind == "LSTM" and MODELS[name] not in OF_LSTM:
            continue
        pairs = (name, MODELS), (tool, tools), (kind, kinds)
        if not all(is_chosen(*pair) for pair in pairs):
            continue
        keras.utils.set_random_seed(0)
        more = {} if kind == "QRNN" else {"layer": kinds[kind]}
        with tempfile.TemporaryDirectory() as directory:
            try:
                model = MODELS[name](time, masked, **more)
                check(tools[tool], model, Path(directory))
                result = "right"
            except AssertionError as error:
                result = f"WRONG: {error}"
            except Exception as error:  # noqa: BLE001 (of any tool)
                words = " ".join(str(error).split())
                result = f"refused: {type(error).__name__}: {words[:300]}"
        masks = "masked" if masked else "-"
        print(
            f"{BACKEND:11}{tool:13}{kind:5}{name:15}{masks:7}time={time!s:5}{result}",
            flush=True,
        )


if __name__ == "__main__":
    main()
