"""Initializers of the gates' bias."""

from typing import Any

import keras
from keras import ops

from keras_qrnn._checks import integer
from keras_qrnn._types import Shape, Tensor
from keras_qrnn.ops.equations import GATES


@keras.saving.register_keras_serializable(package="keras_qrnn")
class ChronoBias(keras.initializers.Initializer):
    """Biases for long memories (Tallec and Ollivier, arXiv 1804.11188, section 2.2).

    For the `bias_initializer` of a `QRNN`. The biases of the forget gates are draws of
    `log(uniform(1, max_length - 1))`, so each unit starts with a memory of its own
    length, from 2 to `max_length` steps. Under ifo-pooling the bias of a unit's input
    gate is minus that of its forget gate. All other biases are zero.

    Args:
        max_length: Integer of at least 3, the longest time in steps that the layer is
            to remember. The length of the sequences is a good choice.
        seed: Seed of the draws, as in Keras's initializers: an integer or None, with
            which each call gives the same biases, or a
            `keras.random.SeedGenerator`, with which each call gives others.

    Call arguments:
        shape: shape of the bias, `(gates * units,)`.
        dtype: dtype of the bias. Defaults to `keras.config.floatx()`.
        pooling: the pooling of the layer, `"f"`, `"fo"` or `"ifo"`, which says where
            the forget gates are. A QRNN passes its own.

    Returns:
        A tensor of the given shape and dtype, with the gates in the order z, f, o, i.

    Raises:
        ValueError: if `max_length` is no integer of at least 3; if a call names no
            pooling, as that of a layer other than a QRNN, or a shape that does not
            fit it.

    Example:

    >>> layer = QRNN(32, bias_initializer=ChronoBias(max_length=200))
    """

    def __init__(
        self, max_length: int, seed: int | keras.random.SeedGenerator | None = None
    ) -> None:
        self.max_length = integer("max_length", max_length, 3)
        self._uniform = keras.initializers.RandomUniform(1.0, max_length - 1.0, seed)

    def __call__(
        self, shape: Shape, dtype: str | None = None, pooling: str | None = None
    ) -> Tensor:
        """See "Call arguments" and "Returns" in the documentation of the class."""
        if pooling not in GATES:
            raise ValueError(
                "ChronoBias is for the `bias_initializer` of a QRNN, which passes its "
                "pooling. Argument `pooling` must be one of "
                f"{', '.join(map(repr, GATES))}. Received: pooling={pooling!r}"
            )
        gates = GATES[pooling]
        if len(shape) != 1 or shape[0] is None or shape[0] % len(gates):
            raise ValueError(
                f"Argument `shape` must be ({len(gates)} * units,), the shape of a "
                f"QRNN's bias. Received: shape={tuple(shape)} with pooling={pooling!r}"
            )
        units = (shape[0] // len(gates),)
        dtype = keras.backend.standardize_dtype(dtype)
        # In a half-precision type neighbouring draws would be steps apart.
        exact = "float64" if dtype == "float64" else "float32"
        forget = ops.log(self._uniform(units, exact))
        biases = {"f": forget, "i": -forget}
        zeros = ops.zeros_like(forget)
        return ops.cast(
            ops.concatenate([biases.get(gate, zeros) for gate in gates]), dtype
        )

    def get_config(self) -> dict[str, Any]:
        seed = self._uniform.get_config()["seed"]
        return {"max_length": self.max_length, "seed": seed}
