from keras_qrnn.layers.qrnn import QRNN

__all__ = ["QRNN"]
