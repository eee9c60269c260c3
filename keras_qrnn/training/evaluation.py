import keras
import numpy as np

from keras_qrnn.data import BPTTBatches
from keras_qrnn.models import LanguageModel


def weight_averages(model: keras.Model) -> list[keras.Variable] | None:
    """The optimizer's moving averages of the trained weights, where it keeps any."""
    optimizer = getattr(model, "optimizer", None)  # there is none before `compile`
    # With mixed_float16 Keras wraps it.
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    if optimizer is None or not (optimizer.use_ema and optimizer.built):
        return None
    # Keras's `SwapEMAWeights` reads them here too; it swaps by additions, which round.
    return optimizer._model_variables_moving_average


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
        self._batches = BPTTBatches(ids, 1, steps)

    def __call__(self) -> float:
        """The perplexity under the weights of this moment, or their averages."""
        weights = weight_averages(self._model) or self._model.trainable_variables
        self._twin.copy_weights(weights)
        self._twin.reset_state()
        logs = self._twin.evaluate(self._batches, verbose=0, return_dict=True)
        return float(logs["perplexity"])


def evaluate_perplexity(
    model: LanguageModel, ids: np.ndarray, steps: int = 2048
) -> float:
    """Perplexity of `model` on the stream `ids`: see `Evaluator`."""
    return Evaluator(model, ids, steps)()
