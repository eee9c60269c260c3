"""The layers, one a file."""

from keras_qrnn.layers.attention import AttentionQRNN
from keras_qrnn.layers.bidirectional import Bidirectional
from keras_qrnn.layers.embedding_dropout import EmbeddingDropout
from keras_qrnn.layers.qrnn import QRNN
from keras_qrnn.layers.qrnn_stack import QRNNStack
from keras_qrnn.layers.stateful_lstm import StatefulLSTM

__all__ = [
    "QRNN",
    "AttentionQRNN",
    "Bidirectional",
    "EmbeddingDropout",
    "QRNNStack",
    "StatefulLSTM",
]
