"""Beam search over any model that predicts one token at a time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_qrnn._checks import number_from_zero, positive_integer
from keras_qrnn._types import Tensor

# Takes the last tokens, int (rows,), the states, and the memory. Returns the next
# token's log-probabilities, (rows, vocabulary), and the new states. States and memory
# are nested tensors whose first axis has `rows`. A step changes the states only.
Step = Callable[[Tensor, Any, Any], tuple[Tensor, Any]]


@dataclass(frozen=True)
class Hypothesis:
    """A translation that the search has found.

    Attributes:
        ids: its tokens without `<eos>`.
        log_probability: the sum of its tokens' log-probabilities, `<eos>` included.
        score: the log-probability after length normalization: higher is better.
        ended: whether it ended with `<eos>`. If not, the search ended first.
    """

    ids: list[int]
    log_probability: float
    score: float
    ended: bool


class BeamSearch:
    """Finds likely sequences, many sentences at a time.

    All hypotheses advance one step at a time. Their states are carried from step to
    step and reordered by the beam. A compiled function does both: it gathers the states
    of the hypotheses that survived, and computes the next step. Its shapes stay the
    same, so one compilation serves all steps and all batches of equal shapes.

    The beam holds the best hypotheses, those that have ended among them. At each step
    a hypothesis of T tokens, `<eos>` included, is ranked by (arXiv 1611.01576, its
    appendix):

        log P * product over t = T .. T_trg of (t + alpha) / t

    The product is 1 for `T > T_trg`. With `alpha=0` the rank is the log-probability.
    The search of a sentence ends when no hypothesis can overtake the best that has
    ended. Its hypotheses then stay as they are: they do not depend on the other
    sentences, up to the rounding of `step`. With a beam of 1 the search is greedy: each
    step takes the likeliest token.

    Args:
        step: the model: see `Step`.
        beam: Positive integer, number of hypotheses. Defaults to the paper's `8`.
        alpha: Float of at least 0, strength of the length normalization. Defaults to
            the paper's `0.6`.
        start: the token before the first one.
        end: the token that ends a sequence.
        forbidden: tokens that are never chosen.
        variables: those that `step` reads. Each call reads their present values.

    Raises:
        ValueError: if `beam` is not a positive integer, or `alpha` not a finite number
            of at least 0.
    """

    def __init__(
        self,
        step: Step,
        beam: int = 8,
        alpha: float = 0.6,
        *,
        start: int,
        end: int,
        forbidden: tuple[int, ...] = (),
        variables: Sequence[keras.Variable] = (),
    ) -> None:
        self.beam = positive_integer("beam", beam)
        self.alpha = number_from_zero("alpha", alpha)
        self._start, self._end = start, end
        self._forbidden = list(forbidden)

        def gather_and_step(
            tokens: Tensor, parents: Tensor, states: Any, memory: Any
        ) -> tuple[Tensor, Any]:
            states = keras.tree.map_structure(
                lambda state: keras.ops.take(state, parents, axis=0), states
            )
            return step(tokens, states, memory)

        self._step = compiled(gather_and_step, variables)

    def __call__(
        self,
        states: Any,
        memory: Any,
        target_lengths: np.ndarray,
        max_steps: np.ndarray,
    ) -> list[list[Hypothesis]]:
        """Searches for each sentence of a batch.

        Args:
            states: the states before the first step, nested tensors of shape
                `(sentences, ...)`.
            memory: what the steps read and do not change, such as the encoder's
                outputs: nested tensors of shape `(sentences, ...)`.
            target_lengths: int array of shape `(sentences,)`: T_trg, the expected
                number of tokens. The paper takes the source length plus 5.
            max_steps: int array of shape `(sentences,)`: the largest number of tokens
                of a hypothesis, `<eos>` included. Each at least 1.

        Returns:
            For each sentence its hypotheses, best first: at most `beam`. Those that
            have ended come before the others.

        Raises:
            ValueError: if one of `max_steps` is below 1, or if `step` gives NaN.
        """
        if max_steps.min() < 1:
            raise ValueError(
                "Argument `max_steps` must hold positive integers. "
                f"Received: max_steps={max_steps}"
            )
        sentences, beam = len(target_lengths), self.beam
        # The rows of a sentence stand one after the other, one for each hypothesis. All
        # have the same memory, so only the states are reordered.
        states, memory = keras.tree.map_structure(
            lambda each: keras.ops.repeat(each, beam, axis=0), (states, memory)
        )
        normalize = self._normalization(target_lengths, int(max_steps.max()))
        first_row = np.arange(sentences)[:, None] * beam
        tokens = np.full((sentences, beam), self._start)
        parents = np.arange(sentences * beam)
        # At first each beam has one hypothesis, without tokens.
        totals = np.full((sentences, beam), -np.inf)
        totals[:, 0] = 0.0
        scores = totals.copy()
        ended = np.zeros((sentences, beam), bool)
        over = np.zeros(sentences, bool)
        history: list[tuple[np.ndarray, np.ndarray]] = []  # tokens and parents' ranks
        for steps in range(1, int(max_steps.max()) + 1):
            logs, states = self._step(
                keras.ops.convert_to_tensor(tokens.reshape(-1), "int32"),
                keras.ops.convert_to_tensor(parents.reshape(-1), "int32"),
                states,
                memory,
            )
            logs = keras.ops.convert_to_numpy(logs).astype("float64")
            logs[:, self._forbidden] = -np.inf
            further = totals[:, :, None] + logs.reshape(sentences, beam, -1)
            vocabulary = further.shape[-1]
            # A hypothesis that has ended is one candidate, unchanged. So is each
            # hypothesis of a sentence whose search is over.
            done = ended | over[:, None]
            if np.isnan(further[~done]).any():
                raise ValueError(
                    "The model must give numbers: its weights may be broken. "
                    "Received: nan for the next token"
                )
            further[done] = -np.inf
            further[done, self._end] = totals[done]
            ranks = further * normalize[:, steps - 1, None, None]
            ranks[done, self._end] = scores[done]
            best = _best(ranks.reshape(sentences, -1), beam)
            origin, tokens = np.divmod(best, vocabulary)
            scores = np.take_along_axis(ranks.reshape(sentences, -1), best, axis=1)
            totals = np.take_along_axis(further.reshape(sentences, -1), best, axis=1)
            goes_on = ~np.take_along_axis(done, origin, axis=1)
            ended = np.take_along_axis(ended, origin, axis=1)
            ended |= goes_on & (tokens == self._end)
            history.append((tokens, origin))
            parents = first_row + origin
            over |= self._is_over(totals, scores, ended) | (steps >= max_steps)
            if over.all():
                break
        return [
            self._hypotheses(n, history, totals[n], scores[n], ended[n])
            for n in range(sentences)
        ]

    def _normalization(self, targets: np.ndarray, steps: int) -> np.ndarray:
        """The factor of each sentence and number of tokens: `(sentences, steps)`."""
        longest = max(steps, int(targets.max()))
        numbers = np.arange(1, longest + 1)
        # The logarithm of the product over t = 1 .. T, for T = 0, 1, ...
        sums = np.concatenate([[0.0], np.cumsum(np.log1p(self.alpha / numbers))])
        logs = sums[np.maximum(targets, 0), None] - sums[None, :steps]
        # With a very large alpha the factor would be infinite from 709 on.
        return np.exp(np.clip(logs, 0.0, 600.0))

    def _is_over(
        self, totals: np.ndarray, scores: np.ndarray, ended: np.ndarray
    ) -> np.ndarray:
        """Whether no other hypothesis of a sentence can overtake the best ended one."""
        # A log-probability only falls, and no factor is below 1: no rank can exceed
        # the log-probability of now.
        possible = np.where(ended, -np.inf, totals).max(axis=1)
        return np.where(ended, scores, -np.inf).max(axis=1) >= possible

    def _hypotheses(
        self,
        sentence: int,
        history: list[tuple[np.ndarray, np.ndarray]],
        totals: np.ndarray,
        scores: np.ndarray,
        ended: np.ndarray,
    ) -> list[Hypothesis]:
        found = []
        # The beam is in the order of the scores.
        for row in sorted(range(self.beam), key=lambda row: not ended[row]):
            if totals[row] == -np.inf:
                continue  # fewer sequences than the beam has places
            ids, place = [], row
            for tokens, origin in reversed(history):
                ids.append(int(tokens[sentence, place]))
                place = origin[sentence, place]
            ids.reverse()
            if self._end in ids:
                ids = ids[: ids.index(self._end)]
            found.append(
                Hypothesis(
                    ids, float(totals[row]), float(scores[row]), bool(ended[row])
                )
            )
        return found


def _best(ranks: np.ndarray, count: int) -> np.ndarray:
    """The indices of the `count` largest values of each row, best first.

    Equal values stay in their order.
    """
    found = np.sort(np.argpartition(-ranks, count - 1, axis=1)[:, :count], axis=1)
    order = np.argsort(-np.take_along_axis(ranks, found, axis=1), axis=1, kind="stable")
    return np.take_along_axis(found, order, axis=1)


def compiled(
    function: Callable[..., Any], variables: Sequence[keras.Variable] = ()
) -> Callable[..., Any]:
    """`function` of nested tensors for inference, compiled on JAX and TensorFlow.

    Args:
        function: changes no variable.
        variables: those that it reads. Each call reads their present values.
    """
    if keras.config.backend() == "jax":
        import jax

        def with_values(values: list[Tensor], *arguments: Any) -> Any:
            # As constants, the weights would be compiled in.
            mapping = list(zip(variables, values, strict=True))
            with keras.StatelessScope(state_mapping=mapping):
                return function(*arguments)

        jitted = jax.jit(with_values)
        return lambda *arguments: jitted([v.value for v in variables], *arguments)
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(function, autograph=False)
    if keras.config.backend() == "torch":
        import torch

        return torch.inference_mode()(function)
    return function
