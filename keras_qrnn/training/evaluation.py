"""A run's weights: their averages, their perplexity, the model of a finished run."""

import os
from pathlib import Path
from typing import TypeVar

import keras
import numpy as np

from keras_qrnn._files import reading
from keras_qrnn.data import Vocabulary
from keras_qrnn.data.batches import stream_batches
from keras_qrnn.distribution import whole_batches
from keras_qrnn.models import LanguageModel
from keras_qrnn.training.run_directory import RunDirectory

Model = TypeVar("Model", bound=keras.Model)
Words = TypeVar("Words", bound=Vocabulary)


def weight_averages(model: keras.Model) -> list[keras.Variable] | None:
    """Moving averages of the model's weights, if its optimizer keeps any.

    Returns:
        One variable for each of `model.weights`, in their order: its average, or the
        variable itself if it is not trained. None if the optimizer keeps no averages,
        or if it has not taken a step yet.
    """
    optimizer = getattr(model, "optimizer", None)  # set by `compile`
    # With mixed_float16, Keras wraps the optimizer.
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    if optimizer is None or not (optimizer.use_ema and optimizer.built):
        return None
    if not int(optimizer.iterations):
        return None  # the averages are zeros before the first step
    # Keras has no public name for the averages. Its callback `SwapEMAWeights` reads the
    # same attribute, but swaps by additions, which round.
    averages = optimizer._model_variables_moving_average
    pairs = zip(optimizer._trainable_variables, averages, strict=True)
    averaged = {id(variable): average for variable, average in pairs}
    return [averaged.get(id(variable), variable) for variable in model.weights]


def weights_to_evaluate(model: keras.Model) -> list[keras.Variable]:
    """The averages of the model's weights, or its weights if there are none."""
    return weight_averages(model) or model.weights


class Evaluator:
    """Computes the perplexity of one stream at each call.

    The model reads the stream as one row, from its first token to its last. Its state
    is carried over. Dropout is off, and zoneout acts as in inference. Every token but
    the first is predicted once, from all tokens before it.

    Args:
        model: a built `LanguageModel`. Its own state is not changed.
        ids: int array of shape `(tokens,)`.
        steps: time steps of one batch. It changes speed and memory, not the result.
    """

    def __init__(self, model: LanguageModel, ids: np.ndarray, steps: int) -> None:
        self._model = model
        self._twin = model.with_batch_size(1)
        self._twin.compile()
        self._batches = stream_batches(ids, steps)

    def __call__(self) -> float:
        """The perplexity under the present weights, or under their averages if any."""
        self._twin.copy_weights(weights_to_evaluate(self._model))
        self._twin.reset_state()
        with whole_batches():  # of one row
            logs = self._twin.evaluate(self._batches, verbose=0, return_dict=True)
        return float(logs["perplexity"])


def evaluate_perplexity(
    model: LanguageModel, ids: np.ndarray, steps: int = 2048
) -> float:
    """Perplexity of `model` on the stream `ids`: see `Evaluator` for the arguments."""
    return Evaluator(model, ids, steps)()


def load_run(
    directory: str | os.PathLike,
    option: str | None,
    kind: type[Model],
    program: str,
    words: type[Words] = Vocabulary,  # type: ignore[assignment]
) -> tuple[Model, Words]:
    """The best model of a run, and its vocabulary.

    If the run was killed, that may be the model of an epoch after its last checkpoint:
    see `RunDirectory.best_model`.

    Args:
        directory: the run's `save_path`.
        option: the option with which a program was given `directory`, for messages.
        kind: class of the model. Its config has the entries `vocabulary`, which is the
            fingerprint of the vocabulary or None, and `vocab_size`.
        program: name of the program that writes such runs.
        words: class of the vocabulary.

    Raises:
        FileNotFoundError: if the directory, `model.keras` or `vocabulary.json` is
            missing.
        ValueError: if a file is damaged, if the model is of another class, or if the
            vocabulary does not fit the model.
    """
    name = "Argument `directory`" if option is None else f"Option `{option}`"
    run = RunDirectory(Path(directory))
    path = run.best_model()
    expected = f"{name} must be a directory that {program} wrote. Received: {directory}"
    if not run.path.exists():
        raise FileNotFoundError(f"{expected}, which does not exist")
    for file in (path, run.vocabulary):
        if not file.is_file():
            raise FileNotFoundError(f"{expected}, which holds no {file.name}")
    what = "".join(f" {c.lower()}" if c.isupper() else c for c in kind.__name__)
    with reading(f"{name}: {path}", f"a whole{what}"):
        model = keras.saving.load_model(path, compile=False)
    if not isinstance(model, kind):
        raise ValueError(
            f"{expected}, which holds a {type(model).__name__}, not a {kind.__name__}"
        )
    try:  # after the model: the vocabulary of another task is no vocabulary here
        vocabulary = words.load(run.vocabulary)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    config = model.get_config()
    if config["vocabulary"] not in (None, vocabulary.fingerprint):
        raise ValueError(
            f"{name}: the vocabulary in {directory} does not fit the model. "
            "It has other words than the model was trained with, or another order"
        )
    if config["vocab_size"] != len(vocabulary):
        raise ValueError(
            f"{name}: the vocabulary in {directory} does not fit the model. "
            f"Expected {config['vocab_size']} words. Received: {len(vocabulary)}"
        )
    return model, vocabulary
