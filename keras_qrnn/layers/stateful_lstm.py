"""Keras's LSTM, with a state that is carried from batch to batch on all backends."""

from collections.abc import Mapping, MutableMapping
from typing import Any

import keras

from keras_qrnn._types import Shape, Tensor
from keras_qrnn.layers._states import KeptStates, with_rows_of


@keras.saving.register_keras_serializable(package="keras_qrnn")
class StatefulLSTM(KeptStates, keras.layers.LSTM):
    """An LSTM that carries its states from batch to batch in `fit` on every backend.

    `keras.layers.LSTM(stateful=True)` carries them on TensorFlow only. On JAX a
    training step writes back tracked variables only. Keras does not track these states,
    so every batch starts from zeros. On PyTorch Keras's layer overwrites states that
    the gradient still needs.

    Arguments, call arguments and output shape are those of `keras.layers.LSTM`. Pass
    `stateful=True`.
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
        """Writes nothing: the cell saves the weights, and states are not saved."""

    def load_own_variables(self, store: Mapping[str, Any]) -> None:
        """Reads nothing: see `save_own_variables`."""
