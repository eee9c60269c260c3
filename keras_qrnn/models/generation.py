"""Text that a language model generates, and the gates of its layers."""

from collections.abc import Sequence

import keras
import numpy as np

from keras_qrnn._checks import integer, positive_integer, positive_number
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
    """Draws words one by one. The model carries its state from word to word.

    Args:
        model: a model with a batch size of 1. Its state is reset first.
        first_id: id of the first word of the text.
        num_words: number of words, the first included.
        temperature: positive number that divides the logits. Below 1, likely words
            become more likely. Near 0, the likeliest word is always drawn.
        rng: source of the draws.

    Returns:
        `num_words` ids, `first_id` first.

    Raises:
        ValueError: if an argument is out of its range.
    """
    integer("first_id", first_id, 0)
    positive_integer("num_words", num_words)
    positive_number("temperature", temperature)
    _check_rows(model)
    model.reset_state()
    ids = [first_id]
    for _ in range(num_words - 1):
        logits = model.predict_on_batch(np.array([ids[-1:]], "int32"))[0, -1]
        logits = logits.astype("float64")
        # The largest logit becomes 0 at any temperature. The others may become -inf.
        with np.errstate(over="ignore"):
            scaled = (logits - logits.max()) / temperature
        # Gumbel noise is added: the largest sum is then a draw from the softmax.
        ids.append(int(np.argmax(scaled + rng.gumbel(size=scaled.shape))))
    return ids


def layer_gates(
    model: LanguageModel, ids: list[int]
) -> dict[str, dict[str, np.ndarray]]:
    """The gates of each QRNN layer while the model reads `ids`.

    Args:
        model: a model with a batch size of 1. Its state is reset first.
        ids: ids of the words that the model reads.

    Returns:
        For each QRNN layer's name, its gates by name ("z", "f" and so on): float32
        arrays of shape `(time, units)`. Other layers are left out.

    Raises:
        ValueError: if the model has another batch size.
    """
    _check_rows(model)
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


def _check_rows(model: LanguageModel) -> None:
    if model.batch_size != 1:
        raise ValueError(
            "Argument `model` must have a batch size of 1, as "
            "`model.with_batch_size(1)`. "
            f"Received: model.batch_size={model.batch_size}"
        )


def text_of(words: Sequence[str]) -> str:
    """The words as text, one sentence a line. Each `<eos>` becomes a line's end."""
    return " ".join(words).replace(" <eos>", "\n").replace("\n ", "\n").rstrip() + "\n"
