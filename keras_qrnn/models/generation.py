"""Text from a language model, one word at a time, and its gates while it reads."""

from collections.abc import Sequence

import keras
import numpy as np

from keras_qrnn.layers import QRNN
from keras_qrnn.models.language_model import LanguageModel
from keras_qrnn.ops.equations import GATES


def generate(
    model: LanguageModel,
    first_id: int,
    num_words: int,
    temperature: float,
    rng: np.random.Generator,
) -> list[int]:
    """Draws words one step at a time; the model carries its state.

    Args:
        model: with a batch size of one. Its state is reset first.
        first_id: id of the word that the text begins with.
        num_words: words in all, the first included.
        temperature: positive; the logits are divided by it. Below 1 the likelier
            words gain, and near 0 the likeliest word is drawn.
        rng: source of the draws.

    Returns:
        The ids, `num_words` of them.
    """
    model.reset_state()
    ids = [first_id]
    for _ in range(num_words - 1):
        logits = model.predict_on_batch(np.array([ids[-1:]], "int32"))[0, -1]
        logits = logits.astype("float64")
        # Of the largest logit zero is left: no temperature makes infinity of it.
        with np.errstate(over="ignore"):
            scaled = (logits - logits.max()) / temperature
        # The largest of Gumbel-perturbed logits is a draw from their softmax.
        ids.append(int(np.argmax(scaled + rng.gumbel(size=scaled.shape))))
    return ids


def layer_gates(
    model: LanguageModel, ids: list[int]
) -> dict[str, dict[str, np.ndarray]]:
    """The gates of each QRNN layer while the model reads `ids`.

    Args:
        model: with a batch size of one. Its state is reset first.
        ids: of the words that it reads.

    Returns:
        For each QRNN layer's name, for each gate's name ("z", "f" and so on), a
        float32 array of shape `(time, units)`. Layers of another kind have none.
    """
    model.reset_state()
    gates = {}
    x = model.embedding(np.array([ids], "int32"))
    for layer in model.recurrent:
        if isinstance(layer, QRNN):
            values = [
                keras.ops.convert_to_numpy(keras.ops.cast(g, "float32"))[0]
                for g in layer.compute_gates(x)
            ]
            gates[layer.name] = dict(zip(GATES[layer.pooling], values, strict=True))
        x = layer(x)
    return gates


def text_of(words: Sequence[str]) -> str:
    """Words as text, a sentence a line; `<eos>` ends a line."""
    return " ".join(words).replace(" <eos>", "\n").replace("\n ", "\n").rstrip() + "\n"
