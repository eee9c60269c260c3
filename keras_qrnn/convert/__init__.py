"""The way from other layers to QRNN: LSTM models, and weights of other QRNNs."""

from keras_qrnn.convert.lstm import from_lstm
from keras_qrnn.convert.pytorch import load_torch_weights, torch_state_dict

__all__ = ["from_lstm", "load_torch_weights", "torch_state_dict"]
