"""Models built from the layers."""

from keras_qrnn.models.language_model import LanguageModel

__all__ = ["LanguageModel"]
