"""A check that a window state comes from the layer that it is given to.

Code written for an LSTM passes all states of an encoder to a decoder. The window state
of a QRNN holds its last inputs, which mean nothing to another layer. If the inputs of
both layers have the same size, the shape does not show the mistake. So the name of the
layer is noted for each window state that it returns. Other tensors are not checked:
arrays, inputs, copies, variables of a loop, arguments of a compiled function.
"""

import weakref
from typing import Any

import keras

from keras_qrnn._types import Tensor
from keras_qrnn.layers._masks import BACKEND
from keras_qrnn.layers._states import KeptStates

if BACKEND == "torch":
    from torch.compiler import is_compiling
else:

    def is_compiling() -> bool:
        """Whether `torch.compile` runs: it hides the attributes of tensors."""
        return False


_ATTRIBUTE = "_keras_qrnn_window_of"
# A reference to a tensor and the name, by the tensor's `id`. An attribute would be
# copied and pickled with the tensor, and those of JAX and NumPy take none. Tensors of
# TensorFlow's graphs take no reference: they have the attribute.
_names: dict[int, tuple[weakref.ref[Any], str]] = {}


def remember(window: Tensor, name: str) -> None:
    """Notes that `window` holds the last inputs of the layer of this name."""
    if is_compiling():
        return
    if BACKEND == "tensorflow":
        setattr(window, _ATTRIBUTE, name)
        return
    key = id(window)
    gone = weakref.ref(window, lambda _: _names.pop(key, None))
    _names[key] = gone, name


def check(window: Tensor, name: str) -> None:
    """Refuses a window state that another layer than that of this name returned.

    Raises:
        ValueError: if a layer of another name returned `window`.
    """
    owner = _name_of(window)
    if owner is not None and owner != name:
        raise ValueError(
            "Argument `initial_state`: the window state holds the last inputs of the "
            "layer that returned it, and another layer has other inputs. A decoder "
            "starts from the encoder's cell alone: `initial_state=cell`. To hand the "
            "window over all the same, copy it: `keras.ops.copy(window)`. "
            f"Expected: the window of layer '{name}'. Received: the window of layer "
            f"'{owner}'"
        )


def _name_of(window: Tensor) -> str | None:
    if is_compiling():
        return None
    if isinstance(window, keras.KerasTensor):
        history = getattr(window, "_keras_history", None)
        operation = getattr(history, "operation", None)
        if not isinstance(operation, KeptStates):
            return None
        return getattr(operation, "_stack", None) or operation.name
    name = getattr(window, _ATTRIBUTE, None)
    if name is None and (noted := _names.get(id(window))) is not None:
        reference, noted_name = noted
        name = noted_name if reference() is window else None
    return name
