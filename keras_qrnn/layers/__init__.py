from keras_qrnn.layers.embedding_dropout import EmbeddingDropout
from keras_qrnn.layers.qrnn import QRNN

__all__ = ["QRNN", "EmbeddingDropout"]
