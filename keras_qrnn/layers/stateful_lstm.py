from collections.abc import Mapping, MutableMapping
from typing import Any

import keras
from keras import ops

from keras_qrnn._types import Shape, Tensor
from keras_qrnn.layers._states import KeptStates


@keras.saving.register_keras_serializable(package="keras_qrnn")
class StatefulLSTM(KeptStates, keras.layers.LSTM):
    """A stateful LSTM whose state is carried over on every backend.

    Keras does not track the kept state of its RNN layers, so on JAX, whose
    training step only writes tracked variables back, `fit` would start every
    batch from zeros; and on PyTorch it overwrites what the gradient still needs.
    """

    def build(
        self, sequences_shape: Shape, initial_state_shape: list[Shape] | None = None
    ) -> None:
        super().build(sequences_shape, initial_state_shape)
        self.kept_state = list(self.states)

    def call(
        self,
        sequences: Tensor,
        initial_state: list[Tensor] | None = None,
        mask: Tensor | None = None,
        training: bool = False,
    ) -> Tensor:
        if initial_state is None:
            # New tensors: on PyTorch the variables change before a gradient is taken.
            # And of the batch's size, which in a graph of TensorFlow is unknown: its
            # loop refuses a state of one row that becomes one of unknown rows.
            zeros = ops.zeros((ops.shape(sequences)[0], 1), self.compute_dtype)
            initial_state = [
                ops.cast(state, self.compute_dtype) + zeros for state in self.states
            ]
        return super().call(sequences, initial_state, mask, training)

    def save_own_variables(self, store: MutableMapping[str, Any]) -> None:
        """Nothing: the kept state is no part of the model, the cell saves its own."""

    def load_own_variables(self, store: Mapping[str, Any]) -> None:
        """Nothing, see `save_own_variables`."""
