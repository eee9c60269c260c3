"""Weights of PyTorch's QRNNs: outputs and states are those of their equations."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_qrnn import QRNN, QRNNStack
from keras_qrnn.convert import load_torch_weights, torch_state_dict
from tests.assertions import assert_close
from tests.reference import sigmoid

BACKEND = keras.config.backend()
FEATURES, UNITS, TIME = 3, 4, 4
RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, TIME, FEATURES))


def their_layer(x, weight, bias, cell=None, window=1, before=None, zoneout=0):
    """A layer of torchqrnn and fastai at inference: `(batch, time, features)`.

    Args:
        before: the input before the first step, `(batch, 1, features)`.

    Returns:
        Outputs, and the last cell state.
    """
    source = x
    if window == 2:
        first = np.zeros_like(x[:, :1]) if before is None else before
        source = np.concatenate([x, np.concatenate([first, x[:, :-1]], 1)], 2)
    units = len(bias) // (3 if len(bias) % 3 == 0 else 2)
    y = source @ weight.T + bias
    z, f = np.tanh(y[..., :units]), sigmoid(y[..., units : 2 * units])
    f = f * (1 - zoneout)
    outputs = np.zeros_like(z)
    cell = np.zeros_like(z[:, 0]) if cell is None else cell
    for t in range(x.shape[1]):
        cell = f[:, t] * z[:, t] + (1 - f[:, t]) * cell
        outputs[:, t] = cell
    if y.shape[-1] == 3 * units:
        outputs = sigmoid(y[..., 2 * units :]) * outputs
    return outputs, cell


def linear(inputs, window=1, gates=3, units=UNITS):
    """Random weight and bias of a `Linear`."""
    shape = (gates * units, window * inputs)
    return RNG.normal(size=shape), RNG.normal(size=shape[:1])


def built(layer, features=FEATURES):
    layer.build((None, None, features))
    return layer


def qrnn(window=1, pooling="fo", **arguments):
    arguments = {"return_sequences": True, "dtype": "float64"} | arguments
    return QRNN(UNITS, window, pooling, **arguments)


@pytest.mark.parametrize(
    ("window", "pooling", "zoneout"),
    [(1, "f", 0), (2, "fo", 0), (2, "f", 0.3), (1, "fo", 0.3)],
)
def test_a_layer(window, pooling, zoneout):
    """`QRNNLayer`: outputs, states, in two pieces, with zoneout at inference."""
    weight, bias = linear(FEATURES, window, len(pooling) + 1)
    given = {"linear.weight": weight, "linear.bias": bias}
    layer = built(qrnn(window, pooling, zoneout=zoneout, return_state=True))
    load_torch_weights(layer, given)
    rest = {"window": window, "zoneout": zoneout}
    first, cell = their_layer(X[:, :2], weight, bias, **rest)
    second, last = their_layer(X[:, 2:], weight, bias, cell, before=X[:, 1:2], **rest)
    got, *state = layer(X[:, :2])
    assert_close("first outputs", got, first, 1e-13)
    assert_close("first cell", state[0], cell, 1e-13)
    got, *state = layer(X[:, 2:], initial_state=state)
    assert_close("outputs", got, second, 1e-13)
    assert_close("cell", state[0], last, 1e-13)
    again = torch_state_dict(layer)
    assert again.keys() == {f"layers.0.{name}" for name in given}
    for name, array in given.items():
        np.testing.assert_array_equal(again[f"layers.0.{name}"], array)


FORMS = {
    "torchqrnn": ("layers.{}.linear.weight", "layers.{}.linear.bias"),
    "awd-lstm-lm": ("rnns.{}.linear.module.weight_raw", "rnns.{}.linear.module.bias"),
    "fastai": (
        "rnns.{}.layers.0.linear.weight_raw",
        "rnns.{}.layers.0.linear.module.bias",
    ),
}


@pytest.mark.parametrize(
    ("layout", "before"), [("torchqrnn", ""), ("awd-lstm-lm", ""), ("fastai", "0.")]
)
def test_several_layers(layout, before):
    """Window 2 in the first layer, as in awd-lstm-lm, and keys of other modules."""
    model = keras.Sequential(
        [
            keras.Input((None, FEATURES), dtype="float64"),
            qrnn(2),
            layers.Dropout(0.5, dtype="float64"),
            qrnn(),
        ]
    )
    linears = [linear(FEATURES, 2), linear(UNITS)]
    given = {
        name.format(n): array
        for n, arrays in enumerate(linears)
        for name, array in zip(FORMS[layout], arrays, strict=True)
    }
    prefix = before + ("layers." if layout == "torchqrnn" else "rnns.")
    source = {before + name: array for name, array in given.items()}
    source |= {"encoder.weight": np.ones((9, FEATURES)), "decoder.bias": np.ones(9)}
    if layout != "torchqrnn":  # what the last training step left
        dropped = FORMS[layout][1].replace("bias", "weight")
        source[before + dropped.format(0)] = linears[0][0] * 2
    load_torch_weights(model, source, prefix=prefix)
    outputs, _ = their_layer(X, *linears[0], window=2)
    outputs, _ = their_layer(outputs, *linears[1])
    assert_close("outputs", model(X), outputs, 1e-13)
    again = torch_state_dict(model, layout)
    assert again.keys() == given.keys()
    for name, array in given.items():
        np.testing.assert_array_equal(again[name], array)
        assert again[name].flags.c_contiguous


def test_two_stacks_side_by_side():
    """fastai's `QRNN(bidirectional=True)`: the directions meet after the last layer."""
    names = [f"{d}.{n}" for d in ("layers", "layers_bwd") for n in (0, 1)]
    linears = dict(zip(names, [linear(FEATURES, 2), linear(UNITS)] * 2, strict=True))
    linears["layers_bwd.0"] = linear(FEATURES, 2)
    given = {
        f"{name}.linear.{part}": array
        for name, arrays in linears.items()
        for part, array in zip(("weight", "bias"), arrays, strict=True)
    }
    stack = QRNNStack(UNITS, 2, window=[2, 1], return_sequences=True, dtype="float64")
    both = built(layers.Bidirectional(stack, dtype="float64"))
    load_torch_weights(both, given)
    expected = []
    for direction, order in (("layers", 1), ("layers_bwd", -1)):
        x = X[:, ::order]
        for n, window in enumerate((2, 1)):
            x, _ = their_layer(x, *linears[f"{direction}.{n}"], window=window)
        expected.append(x[:, ::order])
    assert_close("outputs", both(X), np.concatenate(expected, 2), 1e-13)
    again = torch_state_dict(both)
    assert again.keys() == given.keys()
    for name, array in given.items():
        np.testing.assert_array_equal(again[name], array)
    # The same, half by half, without a stack.
    halves = [built(qrnn(2)), built(qrnn(), UNITS)]
    load_torch_weights(halves, given, prefix="layers_bwd.")
    for layer, one in zip(halves, both.backward_layer.qrnns, strict=True):
        assert_close(layer.name, layer.get_weights()[0], one.get_weights()[0], 0)


def test_directions_that_meet_after_each_layer():
    """fastai's `AWD_QRNN(bidir=True)`: the second layer reads both directions."""
    linears = [[linear(FEATURES, 2) for _ in "fb"], [linear(2 * UNITS) for _ in "fb"]]
    backward = tuple(f"rnns.{{}}.layers_bwd.0.linear.{p}" for p in ("weight", "bias"))
    names = [FORMS["fastai"], backward]
    given = {
        name.format(n): array
        for n, two in enumerate(linears)
        for forms, arrays in zip(names, two, strict=True)
        for name, array in zip(forms, arrays, strict=True)
    }
    found = [
        built(layers.Bidirectional(qrnn(2), dtype="float64")),
        built(layers.Bidirectional(qrnn(), dtype="float64"), 2 * UNITS),
    ]
    load_torch_weights(found, given)
    x, got = X, X
    for two, window, layer in zip(linears, (2, 1), found, strict=True):
        forward, _ = their_layer(x, *two[0], window=window)
        backward, _ = their_layer(x[:, ::-1], *two[1], window=window)
        x, got = np.concatenate([forward, backward[:, ::-1]], 2), layer(got)
    assert_close("outputs", got, x, 1e-13)
    again = torch_state_dict(found, "fastai")
    assert again.keys() == given.keys()
    for name, array in given.items():
        np.testing.assert_array_equal(again[name], array)
    # The same arrays under the names of two stacks side by side are another model.
    with pytest.raises(ValueError, match="the two directions meet after the last"):
        torch_state_dict(found, "torchqrnn")
    with pytest.raises(ValueError, match="no bidirectional QRNN"):
        torch_state_dict(found, "awd-lstm-lm")


def state_dict_of(**names):
    weight, bias = linear(FEATURES, 2)
    return {"linear.weight": weight, "linear.bias": bias} | names


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("change", "prefix", "message"),
    [
        ({"linear.bias": None}, "", "must have a bias for each layer"),
        ({"linear.weight": None}, "", "must have a weight for each layer"),
        ({"linear.weight": np.ones((12, 3))}, "", r"linear.weight .*\(12, 6\)"),
        ({"linear.bias": np.ones(8)}, "", r"linear.bias must have shape \(12,\)"),
        ({"decoder.bias": np.ones(9)}, "", "Received: .*'decoder.bias'"),
        ({"layers.1.linear.weight": np.ones(1)}, "", "must have a bias for each"),
        ({}, "rnns.", "Argument `source` must have names such as"),
        (
            {"layers.1.linear.weight": np.ones(1), "layers.1.linear.bias": np.ones(1)},
            "",
            "Expected: layers.0. Received: layers.0, layers.1",
        ),
    ],
)
def test_what_a_state_dict_lacks(change, prefix, message):
    """The error names the weight, and no weight has changed."""
    layer = built(qrnn(2))
    kernel, bias = layer.get_weights()
    source = state_dict_of() | change
    source = {name: array for name, array in source.items() if array is not None}
    with pytest.raises(ValueError, match=message):
        load_torch_weights(layer, source, prefix)
    np.testing.assert_array_equal(kernel, layer.get_weights()[0])
    np.testing.assert_array_equal(bias, layer.get_weights()[1])


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pooling": "ifo"}, "pooling f or fo"),
        ({"window": 3}, "window 1 or 2"),
        ({"use_bias": False}, "use_bias True"),
        ({"activation": "relu"}, "activation"),
        ({"recurrent_activation": "hard_sigmoid"}, "recurrent_activation"),
        ({"padding": "same"}, "padding causal"),
        ({"go_backwards": True}, "must have go_backwards=False"),
    ],
)
def test_layers_that_pytorch_has_not(arguments, message):
    layer = built(qrnn(**{"window": 2} | arguments))
    with pytest.raises(ValueError, match=message):
        load_torch_weights(layer, state_dict_of())
    with pytest.raises(ValueError, match=message):
        torch_state_dict([layer])


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (QRNNStack(UNITS, 2, dense=True), "dense=True"),
        (QRNNStack(UNITS, 2, go_backwards=True), "must have go_backwards=False"),
        (layers.Bidirectional(QRNNStack(UNITS, 2, dense=True)), "dense=True"),
        (
            layers.Bidirectional(
                qrnn(2, go_backwards=True), backward_layer=qrnn(2, name="back")
            ),
            "must have go_backwards=False",
        ),
        (
            layers.Bidirectional(
                qrnn(2),
                backward_layer=layers.LSTM(
                    UNITS, return_sequences=True, go_backwards=True, dtype="float64"
                ),
            ),
            "as many layers in each direction",
        ),
    ],
)
def test_stacks_and_directions_that_pytorch_has_not(layer, message):
    built(layer)
    with pytest.raises(ValueError, match=message):
        load_torch_weights(layer, state_dict_of())
    with pytest.raises(ValueError, match=message):
        torch_state_dict(layer)


@pytest.mark.one_backend
def test_backward_layer_that_goes_forwards():
    """`Bidirectional` compares the two when it is made, so here it is set later."""
    both = built(layers.Bidirectional(qrnn(2)))
    both.backward_layer.go_backwards = False
    with pytest.raises(ValueError, match="must have go_backwards=True"):
        torch_state_dict(both)


@pytest.mark.one_backend
@pytest.mark.parametrize("layout", FORMS)
def test_layer_after_a_bidirectional_stack(layout):
    """No form has it: the stack's layers are not lost."""
    stack = QRNNStack(UNITS, 2, return_sequences=True, dtype="float64")
    given = [
        built(layers.Bidirectional(stack, dtype="float64")),
        built(qrnn(), 2 * UNITS),
    ]
    with pytest.raises(ValueError, match="the two directions meet after"):
        torch_state_dict(given, layout)
    names = {f"layers.{n}": linear(UNITS) for n in range(2)}
    source = {
        f"{name}.linear.{part}": array
        for name, arrays in names.items()
        for part, array in zip(("weight", "bias"), arrays, strict=True)
    }
    expected = "layers.0, layers_bwd.0, layers.1, layers_bwd.1, layers.2"
    with pytest.raises(ValueError, match=f"Expected: {expected}"):
        load_torch_weights(given, source)


class Counted(layers.Layer):
    """A layer with an attribute that only looks like a list of layers."""

    layers = 3

    def call(self, inputs):
        return inputs


@pytest.mark.one_backend
def test_other_layers_are_left_out():
    """They take no place, and are no stack."""
    model = keras.Sequential(
        [
            keras.Input((None, FEATURES), dtype="float64"),
            layers.Bidirectional(
                layers.LSTM(2, return_sequences=True), dtype="float64"
            ),
            Counted(dtype="float64"),
            qrnn(),
            QRNNStack(UNITS, 2, window=1, return_sequences=True, dtype="float64"),
        ]
    )
    qrnns = [model.layers[2], *model.layers[3].qrnns]
    got = torch_state_dict(model)
    assert list(got) == [
        f"layers.{n}.linear.{part}" for n in range(3) for part in ("weight", "bias")
    ]
    for n, layer in enumerate(qrnns):
        (kernel,) = layer.get_weights()[0]
        shown = got[f"layers.{n}.linear.weight"].T
        np.testing.assert_array_equal(np.abs(shown), np.abs(kernel))
    load_torch_weights(model, {name: array * 2 for name, array in got.items()})
    assert_close(
        "weights",
        torch_state_dict(model)["layers.2.linear.weight"],
        got["layers.2.linear.weight"] * 2,
        0,
    )


@pytest.mark.one_backend
@pytest.mark.parametrize("source", [None, [1], layers.Dense(2)])
def test_what_is_no_state_dict(source):
    with pytest.raises(ValueError, match=r"`source` must be a state dict.*Received: "):
        load_torch_weights(built(qrnn(2)), source)
    arrays = {"linear.weight": np.ones(1), 1: np.ones(1)}
    with pytest.raises(ValueError, match=r"must have strings as names. Received: 1$"):
        load_torch_weights(built(qrnn(2)), arrays)


@pytest.mark.one_backend
def test_what_is_no_target():
    with pytest.raises(ValueError, match="must be built first"):
        load_torch_weights(qrnn(2), state_dict_of())
    with pytest.raises(ValueError, match="Argument `layers` must be a QRNN, a"):
        load_torch_weights(layers.Dense(2), state_dict_of())
    summed = built(layers.Bidirectional(qrnn(2), merge_mode="sum"))
    with pytest.raises(ValueError, match="merge_mode='sum'"):
        torch_state_dict(summed)
    with pytest.raises(ValueError, match="`layout` must be one of 'torchqrnn', 'awd"):
        torch_state_dict(built(qrnn()), "pytorch")


def test_safetensors(tmp_path):
    save_file = pytest.importorskip("safetensors.numpy").save_file
    layer, other = built(qrnn(2)), built(qrnn(2))
    save_file(torch_state_dict(layer, "awd-lstm-lm"), tmp_path / "a.safetensors")
    load_torch_weights(other, str(tmp_path / "a.safetensors"))
    assert_close("kernel", other.get_weights()[0], layer.get_weights()[0], 0)
    (tmp_path / "b.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=r"is not a whole \.safetensors file"):
        load_torch_weights(other, tmp_path / "b.safetensors")


@pytest.mark.skipif(BACKEND == "torch", reason="PyTorch reads its own files")
def test_files_of_pytorch_elsewhere(tmp_path):
    with pytest.raises(ValueError, match="unless PyTorch is the backend"):
        load_torch_weights(built(qrnn(2)), tmp_path / "a.pt")


class Opened:
    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.skipif(BACKEND != "torch", reason="files and tensors of PyTorch")
def test_files_of_pytorch(tmp_path):
    import torch

    layer, other = built(qrnn(2)), built(qrnn(2))
    tensors = {
        name: torch.nn.Parameter(torch.from_numpy(array))
        for name, array in torch_state_dict(layer).items()
    }
    for content in (tensors, {"model": tensors, "opt": {"lr": 0.1}}):
        torch.save(content, tmp_path / "a.pt")
        load_torch_weights(other, tmp_path / "a.pt")
        assert_close("kernel", other.get_weights()[0], layer.get_weights()[0], 0)
        other = built(qrnn(2))
    halves = {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}
    load_torch_weights(other, halves)
    assert_close("kernel", other.get_weights()[0], layer.get_weights()[0], 0.01)
    opened = Opened()
    opened.path = str(tmp_path / "was_run")
    torch.save({"linear.weight": opened}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="weights_only=True"):
        load_torch_weights(other, tmp_path / "a.pt")
    assert not (tmp_path / "was_run").exists()
    torch.save({"linear.weight": 3}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="no tensors"):
        load_torch_weights(other, tmp_path / "a.pt")
