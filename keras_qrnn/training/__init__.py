"""Training: options, run directory, checkpoint, callbacks, evaluation."""

from keras_qrnn.training.continuous_cache import (
    ContinuousCache,
    read_stream,
    tune_cache,
)
from keras_qrnn.training.evaluation import Evaluator, evaluate_perplexity
from keras_qrnn.training.language_model import load_trained, train_language_model
from keras_qrnn.training.options import PRESETS, TrainingOptions
from keras_qrnn.training.sentiment import load_sentiment
from keras_qrnn.training.translation import load_translation

__all__ = [
    "PRESETS",
    "ContinuousCache",
    "Evaluator",
    "TrainingOptions",
    "evaluate_perplexity",
    "load_sentiment",
    "load_trained",
    "load_translation",
    "read_stream",
    "train_language_model",
    "tune_cache",
]
