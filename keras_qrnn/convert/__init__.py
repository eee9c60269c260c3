"""The way from other layers to QRNN: LSTM models, and weights of other QRNNs."""

from keras_qrnn.convert.lstm import from_lstm

__all__ = ["from_lstm"]
