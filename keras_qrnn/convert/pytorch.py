"""Weights of the QRNNs of PyTorch: torchqrnn, awd-lstm-lm and fastai.

Their layer is one `Linear` of `window * features` inputs and `gates * units` outputs:

    z, f, o = split(Linear(concat(x[t], x[t-1])))
    c[t] = sigmoid(f) * tanh(z) + (1 - sigmoid(f)) * c[t-1]
    h[t] = sigmoid(o) * c[t]

Three things differ from `QRNN`. A `Linear` has its weight transposed. Its first block
of columns belongs to the present input, which the kernel of `QRNN` has last. Its forget
gate is `1 - f`, so weight and bias of f have the other sign.
"""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import activations, ops

from keras_qrnn._files import reading
from keras_qrnn._types import Tensor
from keras_qrnn.layers import QRNN, QRNNStack

FORWARD, BACKWARD = "layers", "layers_bwd"  # as in the names of torchqrnn and fastai
_POOLINGS = ("f", "fo")

_PART = r"linear\.(?:module\.)?(?P<part>weight|weight_raw|bias)"
# The layers of one module: the backward ones never see the outputs of a forward one.
_ONE_MODULE = re.compile(
    rf"(?:(?P<direction>{FORWARD}|{BACKWARD})\.(?P<depth>\d+)\.)?{_PART}"
)
# A module for each layer.
_MODULES = re.compile(
    rf"(?:rnns\.)?(?P<depth>\d+)\.(?:(?P<direction>{FORWARD}|{BACKWARD})\.0\.)?{_PART}"
)
# For each layout the names of a layer's weight and bias.
_LAYOUTS = {
    "torchqrnn": (
        "{direction}.{depth}.linear.weight",
        "{direction}.{depth}.linear.bias",
    ),
    "awd-lstm-lm": (
        "rnns.{depth}.linear.module.weight_raw",
        "rnns.{depth}.linear.module.bias",
    ),
    "fastai": (
        "rnns.{depth}.layers.0.linear.weight_raw",
        "rnns.{depth}.layers.0.linear.module.bias",
    ),
}
# fastai's weight drop is around the forward layer alone.
_FASTAI_BACKWARD = (
    "rnns.{depth}.layers_bwd.0.linear.weight",
    "rnns.{depth}.layers_bwd.0.linear.bias",
)


class Place(NamedTuple):
    """Where a layer stands: its number from the input on, and its direction."""

    depth: int
    direction: str = FORWARD


class Linear(NamedTuple):
    """A layer in their form, each array with its name in the state dict."""

    weight: tuple[str, np.ndarray]
    bias: tuple[str, np.ndarray]


def load_torch_weights(
    layers: Any,
    source: Mapping[str, Tensor] | str | os.PathLike[str],
    prefix: str = "",
) -> None:
    """Assigns the weights of a PyTorch QRNN to QRNN layers.

    The weights are those of a `QRNNLayer` or `QRNN` of salesforce/pytorch-qrnn, with
    names such as `linear.weight` and `layers.0.linear.weight`; of the recurrent layers
    of salesforce/awd-lstm-lm, `rnns.0.linear.module.weight_raw`; or of fastai's `QRNN`
    and `AWD_QRNN`, `layers_bwd.0.linear.weight` and
    `0.rnns.0.layers.0.linear.weight_raw`. Where the weight drop left a `weight` beside
    a `weight_raw`, `weight_raw` is taken.

    Their `QRNN` with `bidirectional=True` is two stacks whose last outputs are
    concatenated: that is a `Bidirectional` of a stack, not a stack of `Bidirectional`.

    Layers that compute something else than PyTorch's are refused. A layer must have
    pooling "f" or "fo", window 1 or 2, tanh and sigmoid as activations, and a bias. It
    must have no `padding="same"`, context, attention or dense connections. A
    `Bidirectional` must concatenate. Only its backward layer may have
    `go_backwards=True`.

    Args:
        layers: what gets the weights, built: a `QRNN`, a `Bidirectional`, a model or
            stack of such layers, or a list of such layers. Other layers in a model are
            left as they are.
        source: the state dict, of PyTorch's tensors, tensors of the active backend or
            NumPy arrays. Or a file: `.safetensors`, or, with PyTorch as the backend,
            what `torch.save` made of a state dict. A file of pickled code is refused.
        prefix: what the names of the layers begin with, such as `"0.rnns."`. Other
            names are left out.

    Raises:
        ValueError: if a layer is not built or is refused as said above, if a name is
            missing, unknown or left over, if a shape does not fit, or if a file is no
            file of tensors. No weight has changed then.
        ImportError: if `source` is a `.safetensors` file and safetensors is not
            installed.
    """
    if isinstance(source, (str, os.PathLike)):
        source = _read(Path(source))
    if not isinstance(source, Mapping):
        raise ValueError(
            "Argument `source` must be a state dict, tensors by name, or the path of a "
            f"file. Received: {type(source).__name__}"
        )
    if no_names := [key for key in source if not isinstance(key, str)]:
        raise ValueError(
            "Argument `source` must have strings as names. "
            f"Received: {', '.join(map(repr, no_names[:6]))}"
        )
    linears, is_one_module = _parsed(source, prefix)
    found = _qrnns(layers)
    _check_places(found, linears, prefix)
    _check_directions(layers, is_one_module)
    values = [_of_linear(linears[place], layer) for place, layer in found.items()]
    for layer, (kernel, bias) in zip(found.values(), values, strict=True):
        layer.kernel.assign(kernel)
        layer.bias.assign(bias)


def torch_state_dict(layers: Any, layout: str = "torchqrnn") -> dict[str, np.ndarray]:
    """The weights of QRNN layers in the form of a PyTorch QRNN.

    Args:
        layers: as in `load_torch_weights`.
        layout: whose names. `"torchqrnn"`: `layers.0.linear.weight`, those of
            torchqrnn's and fastai's `QRNN`. `"awd-lstm-lm"`:
            `rnns.0.linear.module.weight_raw`. `"fastai"`: those of its `AWD_QRNN`,
            `rnns.0.layers.0.linear.weight_raw`.

    Returns:
        NumPy arrays by name. They have the dtype of the weights; bfloat16 becomes
        float32. `torch.from_numpy` makes a tensor of each, and
        `safetensors.numpy.save_file` a file of all.

    Raises:
        ValueError: if a layer is not built, or is one that `load_torch_weights`
            refuses.
    """
    if layout not in _LAYOUTS:
        raise ValueError(
            f"Argument `layout` must be one of {', '.join(map(repr, _LAYOUTS))}. "
            f"Received: layout={layout!r}"
        )
    found = _qrnns(layers)
    _check_directions(layers, is_one_module=layout == "torchqrnn")
    arrays = {}
    for place, layer in found.items():
        names = _LAYOUTS[layout]
        if place.direction == BACKWARD and layout != "torchqrnn":
            if layout == "awd-lstm-lm":
                raise ValueError(
                    "awd-lstm-lm has no bidirectional QRNN: name another `layout`, or "
                    f"forward layers alone. Received: layout={layout!r}"
                )
            names = _FASTAI_BACKWARD
        for name, array in zip(names, _to_linear(layer), strict=True):
            arrays[name.format(**place._asdict())] = array
    return arrays


def _read(path: Path) -> dict[str, Tensor]:
    """The state dict in a file. Nothing in the file is run."""
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        with reading(path, "a whole .safetensors file"):
            return load_file(path)
    if keras.config.backend() != "torch":
        raise ValueError(
            "Argument `source` must be a .safetensors file unless PyTorch is the "
            "backend. PyTorch can write one: `safetensors.torch.save_file(torch.load("
            f"path, weights_only=True), new_path)`. Received: source={str(path)!r}"
        )
    import torch

    with reading(path, "a state dict that `torch.load(weights_only=True)` reads"):
        content = torch.load(path, map_location="cpu", weights_only=True)
        # With the optimizer's state beside it, as `Learner.save` of fastai writes it.
        if isinstance(content.get("model"), Mapping):
            content = content["model"]
        if not all(isinstance(each, torch.Tensor) for each in content.values()):
            raise TypeError(f"values that are no tensors, names {list(content)[:6]}")
    return content


def _parsed(
    state_dict: Mapping[str, Tensor], prefix: str
) -> tuple[dict[Place, Linear], bool]:
    """The layers by place, and whether all are of one module."""
    parts: dict[Place, dict[str, tuple[str, np.ndarray]]] = {}
    kinds = set()
    unknown = []
    for name, value in state_dict.items():
        if not name.startswith(prefix):
            continue
        rest = name.removeprefix(prefix)
        match = _ONE_MODULE.fullmatch(rest) or _MODULES.fullmatch(rest)
        if match is None:
            unknown.append(name)
            continue
        kinds.add(match.re)
        place = Place(int(match["depth"] or 0), match["direction"] or FORWARD)
        parts.setdefault(place, {})[match["part"]] = (name, _array(value))
    if unknown or len(kinds) != 1:
        raise ValueError(
            "Argument `source` must have names such as 'layers.0.linear.weight' or "
            "'rnns.0.linear.module.weight_raw' alone, after `prefix`. Received: "
            f"prefix={prefix!r} and the names {unknown or list(state_dict)}"
        )
    linears = {}
    for place, found in parts.items():
        weight = found.get("weight_raw", found.get("weight"))
        if weight is None or "bias" not in found:
            what = "bias" if weight else "weight"
            raise ValueError(
                f"Argument `source` must have a {what} for each layer. Received: "
                f"{', '.join(name for name, _ in found.values())} alone of its layer"
            )
        linears[place] = Linear(weight, found["bias"])
    return linears, kinds == {_ONE_MODULE}


def _qrnns(layers: Any) -> dict[Place, QRNN]:
    """The QRNN layers by place, checked for what PyTorch's layers can compute."""
    found: dict[Place, QRNN] = {}
    depth = 0
    for layer in _in_order(layers):
        # A stack in a Bidirectional has several places.
        inner = {direction: _in_order(each) for direction, each in _directions(layer)}
        counts = {direction: len(qrnns) for direction, qrnns in inner.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(
                "A bidirectional PyTorch QRNN has as many layers in each direction, "
                f"layer '{layer.name}' has not. Received: {counts}"
            )
        for direction, qrnns in inner.items():
            for n, qrnn in enumerate(qrnns):
                # The first layer of a stack that goes backwards hands on its order.
                _check_equations(qrnn, direction == BACKWARD and n == 0)
                found[Place(depth + n, direction)] = qrnn
        depth += counts[FORWARD]
    if not found:
        raise ValueError(
            "Argument `layers` must be a QRNN, a Bidirectional, or a model, stack or "
            f"list of them. Received: layers={layers!r}"
        )
    return found


def _directions(layer: keras.layers.Layer) -> Iterable[tuple[str, keras.layers.Layer]]:
    if isinstance(layer, keras.layers.Bidirectional):
        return [(FORWARD, layer.forward_layer), (BACKWARD, layer.backward_layer)]
    return [(FORWARD, layer)]


def _in_order(layers: Any) -> list[keras.layers.Layer]:
    """The QRNNs in `layers`, and the Bidirectional layers of QRNNs, in models too."""
    if isinstance(layers, QRNN):
        return [layers]
    if isinstance(layers, keras.layers.Bidirectional):
        both = [layers.forward_layer, layers.backward_layer]
        return [layers] if _in_order(both) else []
    inner = layers if isinstance(layers, (list, tuple)) else _inner(layers)
    return [each for layer in inner for each in _in_order(layer)]


def _inner(layer: Any) -> list[keras.layers.Layer]:
    """The layers of a stack or of a model."""
    if isinstance(layer, QRNNStack):
        if layer.dense:
            raise ValueError(
                "A PyTorch QRNN has no dense connections, layer "
                f"'{layer.name}' has. Received: dense=True"
            )
        return layer.qrnns
    inner = getattr(layer, "layers", None)
    return list(inner) if isinstance(inner, (list, tuple)) else []


def _check_equations(layer: QRNN, go_backwards: bool) -> None:
    """Raises an error if a PyTorch QRNN computes something else than `layer`.

    Args:
        layer: the layer.
        go_backwards: what its `go_backwards` must be where it stands.
    """
    if layer.kernel is None:
        raise ValueError(
            f"Layer '{layer.name}' must be built first: call `build` or the model."
        )
    has = {
        "pooling": (layer.pooling, _POOLINGS),
        "window": (layer.window, (1, 2)),
        "activation": (layer.activation, (activations.tanh,)),
        "recurrent_activation": (layer.recurrent_activation, (activations.sigmoid,)),
        "padding": (layer.padding, ("causal",)),
        "use_bias": (layer.use_bias, (True,)),
    }
    for name, (value, allowed) in has.items():
        if value not in allowed:
            raise ValueError(
                f"A PyTorch QRNN has {name} {' or '.join(map(str, allowed))}, layer "
                f"'{layer.name}' has not. Received: {name}={value!r}"
            )
    if layer.go_backwards != go_backwards:
        raise ValueError(
            f"Layer '{layer.name}' must have go_backwards={go_backwards}: the backward "
            "layer of a Bidirectional goes backwards, and no other layer does. "
            f"Received: go_backwards={layer.go_backwards}"
        )
    if len(layer.weights) != 2:
        raise ValueError(
            f"Layer '{layer.name}' must have a kernel and a bias, and no other weight. "
            f"Received: {[weight.path for weight in layer.weights]}"
        )


def _check_directions(layers: Any, is_one_module: bool) -> None:
    """Raises an error if the directions meet in other places than in PyTorch's QRNN.

    Args:
        layers: as in `load_torch_weights`.
        is_one_module: whether they meet after the last layer, not after each layer.
    """
    outer = _in_order(layers)
    bidirectional = [
        layer for layer in outer if isinstance(layer, keras.layers.Bidirectional)
    ]
    for layer in bidirectional:
        if layer.merge_mode != "concat":
            raise ValueError(
                "A bidirectional PyTorch QRNN concatenates its outputs. Received: "
                f"merge_mode={layer.merge_mode!r} of layer '{layer.name}'"
            )
    has_stack = any(len(_in_order(layer.forward_layer)) > 1 for layer in bidirectional)
    if bidirectional and (len(outer) > 1 if is_one_module else has_stack):
        expected = (
            "one Bidirectional around a stack: the two directions meet after the last "
            "layer"
            if is_one_module
            else "a Bidirectional for each layer: the two directions meet after each"
        )
        raise ValueError(
            f"Argument `layers` must be {expected}, with names of this form. Received: "
            f"{', '.join(layer.name for layer in outer)}"
        )


def _check_places(
    found: Mapping[Place, QRNN], linears: Mapping[Place, Linear], prefix: str
) -> None:
    if set(found) != set(linears):
        raise ValueError(
            "Argument `source` must have the layers that `layers` has. Expected: "
            f"{_shown(found)}. Received: {_shown(linears)} with prefix={prefix!r}"
        )


def _shown(places: Iterable[Place]) -> str:
    return ", ".join(f"{place.direction}.{place.depth}" for place in sorted(places))


def _array(value: Tensor) -> np.ndarray:
    """A tensor of any framework as an array, float32 for bfloat16."""
    is_half = "bfloat16" in str(getattr(value, "dtype", ""))
    if hasattr(value, "detach"):  # PyTorch's, which need not be the backend
        return (value.float() if is_half else value).detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        return value.astype("float32") if is_half else value
    return ops.convert_to_numpy(ops.cast(value, "float32") if is_half else value)


def _of_linear(linear: Linear, layer: QRNN) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias for `layer`, of its shapes."""
    window, features, channels = layer.kernel.shape
    shapes = ((channels, window * features), (channels,))
    for (name, array), shape in zip(linear, shapes, strict=True):
        if array.shape != shape:
            raise ValueError(
                f"{name} must have shape {shape} for layer '{layer.name}', which has "
                f"window={window}, {features} features, units={layer.units} and "
                f"pooling={layer.pooling!r}. Received: shape={array.shape}"
            )
    blocks = _f_negated(linear.weight[1], layer).reshape(channels, window, features)
    return blocks[:, ::-1].transpose(1, 2, 0), _f_negated(linear.bias[1], layer)


def _to_linear(layer: QRNN) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias of their `Linear`, contiguous as files want them."""
    kernel = _array(layer.kernel)
    window, features, channels = kernel.shape
    blocks = kernel.transpose(2, 0, 1)[:, ::-1]
    weight = blocks.reshape(channels, window * features)
    return _f_negated(weight, layer), _f_negated(_array(layer.bias), layer)


def _f_negated(array: np.ndarray, layer: QRNN) -> np.ndarray:
    """A contiguous copy with the other sign in the rows of the forget gate."""
    array = np.array(array, order="C")
    array[layer.units : 2 * layer.units] *= -1
    return array
