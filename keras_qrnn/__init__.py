"""Quasi-Recurrent Neural Networks for Keras 3 (arXiv 1611.01576)."""

from keras_qrnn.layers import QRNN, AttentionQRNN, Bidirectional, QRNNStack
from keras_qrnn.ops import f_pool, fo_pool, ifo_pool, linear_scan

__version__ = "0.1.0"

__all__ = [
    "QRNN",
    "AttentionQRNN",
    "Bidirectional",
    "QRNNStack",
    "f_pool",
    "fo_pool",
    "ifo_pool",
    "linear_scan",
]
