"""What the training script, the tuner and the tests share."""

from keras_qrnn.training.cache import ContinuousCache, read_stream, tune_cache
from keras_qrnn.training.evaluation import Evaluator, evaluate_perplexity
from keras_qrnn.training.loop import (
    PRESETS,
    TrainingOptions,
    load_trained,
    train_language_model,
)

__all__ = [
    "PRESETS",
    "ContinuousCache",
    "Evaluator",
    "TrainingOptions",
    "evaluate_perplexity",
    "load_trained",
    "read_stream",
    "train_language_model",
    "tune_cache",
]
