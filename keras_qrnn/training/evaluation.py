import keras
import numpy as np

from keras_qrnn.data import BPTTBatches
from keras_qrnn.models import LanguageModel


def weight_averages(model: LanguageModel) -> list[keras.Variable] | None:
    """What the model has learned, in moving averages if its optimizer keeps them."""
    optimizer = getattr(model, "optimizer", None)  # there is none before `compile`
    # With mixed_float16 Keras wraps it.
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    if optimizer is None or not (optimizer.use_ema and optimizer.built):
        return None
    if not int(optimizer.iterations):
        return None  # they are zeros before the first step
    # Keras's `SwapEMAWeights` reads them here too; it swaps by additions, which round.
    averages = optimizer._model_variables_moving_average
    pairs = zip(optimizer._trainable_variables, averages, strict=True)
    averaged = {id(variable): average for variable, average in pairs}
    return [averaged.get(id(variable), variable) for variable in model.weights]


def kept_model(model: LanguageModel) -> LanguageModel:
    """What a run keeps: a copy of the model, with the averages of its weights if any.

    The copy is not compiled. AdamW's moments would make its file three times as large,
    and what a run needs to go on is in its checkpoint.
    """
    kept = model.with_batch_size(model.batch_size)
    kept.copy_weights(weight_averages(model) or model.weights)
    return kept


class Evaluator:
    """Computes the perplexity of one stream, again and again.

    The stream is read as one row from its first token to its last, the state
    carried over, dropout and zoneout off: every token but the first is
    predicted once, from all that came before.

    Args:
        model: a built `LanguageModel`; its own state is not touched.
        ids: int array of shape `(tokens,)`.
        steps: tokens read at a time; only speed depends on it.
    """

    def __init__(self, model: LanguageModel, ids: np.ndarray, steps: int) -> None:
        self._model = model
        self._twin = model.with_batch_size(1)
        self._twin.compile()
        self._batches = BPTTBatches(ids, 1, min(steps, len(ids) - 1))

    def __call__(self) -> float:
        """The perplexity under the weights of this moment, or their averages."""
        self._twin.copy_weights(weight_averages(self._model) or self._model.weights)
        self._twin.reset_state()
        logs = self._twin.evaluate(self._batches, verbose=0, return_dict=True)
        return float(logs["perplexity"])


def evaluate_perplexity(
    model: LanguageModel, ids: np.ndarray, steps: int = 2048
) -> float:
    """Perplexity of `model` on the stream `ids`: see `Evaluator`."""
    return Evaluator(model, ids, steps)()
