"""The continuous cache: a language model's recent past, used in evaluation."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import keras
import numpy as np
from keras import ops

from keras_qrnn._checks import positive_integer, rate
from keras_qrnn.data.batches import stream_batches
from keras_qrnn.distribution import whole_batches
from keras_qrnn.models import LanguageModel
from keras_qrnn.ops.backend import backend

THETAS = (0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)
WEIGHTS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4)


@dataclass(frozen=True)
class ReadStream:
    """A stream after a model has read it. Index t belongs to the t-th target.

    Attributes:
        targets: int array of shape `(tokens - 1,)`: each token but the first.
        hidden: float32 array of shape `(tokens - 1, units of the last layer)`: the
            inputs of the softmax.
        log_probability: float64 array of shape `(tokens - 1,)`, in nats: that of each
            target under the model without a cache.
    """

    targets: np.ndarray
    hidden: np.ndarray
    log_probability: np.ndarray

    @property
    def perplexity(self) -> float:
        """Perplexity under the model without a cache."""
        return float(np.exp(-self.log_probability.mean()))


class _Reader(keras.Model):
    """Gives a language model's hidden states and its targets' log-probabilities."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__(name="reader", dtype=model.dtype_policy)
        self.model = model

    def call(self, inputs: tuple) -> tuple:
        tokens, targets = inputs
        hidden = self.model.hidden(tokens)
        logits = ops.cast(self.model.softmax_logits(hidden), "float32")
        return ops.cast(hidden, "float32"), -backend.cross_entropy(logits, targets)


def read_stream(model: LanguageModel, ids: np.ndarray, steps: int = 2048) -> ReadStream:
    """Lets `model` read `ids` as one row, with the state carried over and no dropout.

    Args:
        model: a built `LanguageModel`. Its own state is not changed.
        ids: int array of shape `(tokens,)`.
        steps: time steps of one batch. It changes speed and memory, not the result.
    """
    reader = _Reader(model.with_batch_size(1))
    batches = stream_batches(ids, steps)
    hidden, log_probability = [], []
    for n in range(len(batches)):
        tokens, targets, _ = batches[n]
        with whole_batches():  # of one row
            states, logs = reader.predict_on_batch((tokens, targets))
        hidden.append(states[0])
        log_probability.append(np.float64(logs[0]))
    count = batches.num_targets
    return ReadStream(
        np.asarray(ids[1:]),
        np.concatenate(hidden)[:count],
        np.concatenate(log_probability)[:count],
    )


@dataclass(frozen=True)
class ContinuousCache:
    """The continuous cache of arXiv 1612.04426, for evaluation.

    The cache holds the last `size` hidden states and the word that followed each. A
    word gets a high probability from the cache if it followed states like the present
    one. A word's probability is a weighted mean of the model's and the cache's:

        p(w) = (1 - weight) p_model(w) + weight p_cache(w)
        p_cache(w) ~ sum over the past i with x[i + 1] = w of exp(theta h[t] . h[i])

    Args:
        size: Positive integer, number of past positions.
        theta: Positive number that multiplies the products of hidden states.
        weight: Float in [0, 1), the weight of the cache. The first target has no past:
            there the weight is 0.

    Raises:
        ValueError: if an argument is out of its range.
    """

    size: int = 2000
    theta: float = 0.3
    weight: float = 0.1

    def __post_init__(self) -> None:
        positive_integer("size", self.size)
        rate("weight", self.weight)
        if not 0 < self.theta < float("inf"):
            raise ValueError(
                f"Argument `theta` must be positive. Received: theta={self.theta!r}"
            )

    def perplexity(self, stream: ReadStream) -> float:
        """The perplexity of `stream` under the model with this cache."""
        (probability,) = _cache_probabilities(stream, self.size, (self.theta,))
        return _perplexity(stream, probability, self.weight)


def tune_cache(stream: ReadStream, size: int = 2000) -> ContinuousCache:
    """Chooses theta and weight from a grid, by the perplexity of `stream`.

    Args:
        stream: the validation split as the model read it.
        size: number of past positions.

    Returns:
        The cache of the lowest perplexity among `THETAS` and `WEIGHTS`.
    """
    cache = ContinuousCache(size)
    probabilities = _cache_probabilities(stream, size, THETAS)
    _, theta, weight = min(
        (_perplexity(stream, probability, weight), theta, weight)
        for theta, probability in zip(THETAS, probabilities, strict=True)
        for weight in WEIGHTS
    )
    return replace(cache, theta=theta, weight=weight)


def _perplexity(stream: ReadStream, cached: np.ndarray, weight: float) -> float:
    weights = np.full(len(cached), weight)
    weights[0] = 0.0  # the first target has no past
    model = np.exp(stream.log_probability)
    return float(np.exp(-np.log((1 - weights) * model + weights * cached).mean()))


def _cache_probabilities(
    stream: ReadStream, size: int, thetas: tuple[float, ...]
) -> np.ndarray:
    """Each target's probability under the cache alone.

    Returns:
        float64 array of shape `(thetas, tokens - 1)`. The first target's is 0.
    """
    found = np.zeros((len(thetas), len(stream.targets)))
    for at, likeness, follows in _pasts(stream, size):
        for n, theta in enumerate(thetas):
            scores = theta * likeness
            scores = np.exp(scores - scores.max(axis=1, keepdims=True))
            found[n, at] = (scores * follows).sum(1) / scores.sum(1)
    return found


def _pasts(
    stream: ReadStream, size: int, rows: int = 256
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Compares positions with their pasts, `rows` positions at a time.

    The past of a position is the `size` positions before it. The first position has no
    past and is left out.

    Yields:
        at: slice of the positions.
        likeness: float32 of shape `(rows, past)`, the products of the positions' hidden
            states with the past ones. Minus infinity outside a position's past.
        follows: bool of the same shape, whether both positions have the same target.
    """
    size = min(size, len(stream.targets))  # a larger int may overflow in NumPy
    for start in range(1, len(stream.targets), rows):
        stop = min(start + rows, len(stream.targets))
        first = max(0, start - size)
        past = np.arange(first, stop - 1)
        now = np.arange(start, stop)[:, None]
        likeness = stream.hidden[start:stop] @ stream.hidden[first : stop - 1].T
        likeness[(past >= now) | (past < now - size)] = -np.inf
        follows = stream.targets[past] == stream.targets[now]
        yield slice(start, stop), likeness, follows
