from collections.abc import Mapping, MutableMapping
from typing import Any

import keras

from keras_qrnn._types import Shape, Tensor
from keras_qrnn.layers._states import KeptStates, with_rows_of


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
            initial_state = with_rows_of(sequences, self.states)
        return super().call(sequences, initial_state, mask, training)

    def save_own_variables(self, store: MutableMapping[str, Any]) -> None:
        """Nothing: the kept state is no part of the model, the cell saves its own."""

    def load_own_variables(self, store: Mapping[str, Any]) -> None:
        """Nothing, see `save_own_variables`."""
