"""What the training script, the tuner and the tests share."""

from keras_qrnn.training.evaluation import Evaluator, evaluate_perplexity
from keras_qrnn.training.loop import TrainingOptions, train_language_model

__all__ = [
    "Evaluator",
    "TrainingOptions",
    "evaluate_perplexity",
    "train_language_model",
]
