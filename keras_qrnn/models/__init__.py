"""Models built from the layers."""

from keras_qrnn.models.language_model import LanguageModel
from keras_qrnn.models.sentiment import SentimentModel
from keras_qrnn.models.sentiment_classifier import SentimentClassifier
from keras_qrnn.models.translation import TranslationModel
from keras_qrnn.models.translator import Translator

__all__ = [
    "LanguageModel",
    "SentimentClassifier",
    "SentimentModel",
    "TranslationModel",
    "Translator",
]
