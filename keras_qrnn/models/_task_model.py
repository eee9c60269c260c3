"""The base class of the models of the three tasks: copies, weights, saved files."""

from collections.abc import Iterable
from typing import Any, NoReturn, Self

import keras
from keras import ops

from keras_qrnn._types import Tensor


def copy_weights(layer: keras.layers.Layer, values: Iterable[Tensor]) -> None:
    """Assigns copies of `values` to all weights of a layer or model, in their order.

    Raises:
        ValueError: if the number of values or a shape differs.
    """
    for variable, value in zip(layer.weights, values, strict=True):
        # A copy is needed: on JAX a training step frees the buffers of its weights.
        variable.assign(ops.copy(value))


class TaskModel(keras.Model):
    """A base of models that `build()` builds without a shape.

    The model has an attribute `_config`: the arguments of its constructor, by name.
    """

    _config: dict[str, Any]

    def copy(self) -> Self:
        """A built model with the same arguments and copied weights, not compiled.

        States that the model keeps are zero in the copy.
        """
        return self._copy_with()

    def _copy_with(self, **changes: Any) -> Self:
        """A copy with other arguments, which must not change the weights' shapes."""
        twin = type(self)(**self._config | changes, dtype=self.dtype_policy)
        twin.build()
        twin.copy_weights(self.weights)
        return twin

    def copy_weights(self, values: Iterable[Tensor]) -> None:
        """Assigns copies of `values` to all `weights`, in their order.

        Raises:
            ValueError: if the number of values or a shape differs.
        """
        copy_weights(self, values)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        config = keras.saving.deserialize_keras_object(config)
        del config["loss"]  # `compile` sets it
        self.compile(**config)
        self.optimizer.build(self.trainable_variables)

    def quantize(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not possible: a copy or a loaded file of the model would have other weights.

        Raises:
            NotImplementedError: always.
        """
        advice = ""
        if hasattr(self, "serving_model"):
            advice = ". What its `serving_model` returns can be quantized"
        raise NotImplementedError(f"{type(self).__name__} cannot be quantized{advice}")

    def get_config(self) -> dict[str, Any]:
        dtype = keras.saving.serialize_keras_object(self.dtype_policy)
        return {**self._config, "name": self.name, "dtype": dtype}
