"""The cross-entropy of a softmax, in pieces of tokens that fit in a core's cache."""

from typing import Any

import torch
from torch.autograd import Function
from torch.nn import functional

from keras_qrnn.ops.torch.dispatch import is_recorded
from keras_qrnn.ops.torch.loops import slices

# Logits that a core's cache holds.
PIECE_LOGITS = 2**19


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    flat, classes = logits.flatten(0, -2), targets.flatten().long()
    in_pieces = logits.is_cpu and not torch.compiler.is_compiling()
    if in_pieces and not is_recorded(logits):
        losses = CrossEntropy.apply(flat, classes)
    else:
        none = torch.iinfo(torch.long).min  # not -100, which PyTorch would ignore
        losses = functional.cross_entropy(
            flat, classes, reduction="none", ignore_index=none
        )
    return losses.view(targets.shape)


class CrossEntropy(Function):
    """The losses `(tokens,)` of logits `(tokens, classes)` and targets `(tokens,)`.

    No array of the size of the logits is made, except the gradient by them.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        normalizer = logits.new_empty(len(logits))
        for at in _pieces(logits):
            torch.logsumexp(logits[at], -1, out=normalizer[at])
        ctx.save_for_backward(logits, targets, normalizer)
        return normalizer - logits.gather(1, targets[:, None])[:, 0]

    @staticmethod
    def backward(ctx: Any, d_losses: torch.Tensor) -> tuple[torch.Tensor, None]:
        logits, targets, normalizer = ctx.saved_tensors
        if torch.is_grad_enabled() or is_recorded(d_losses):  # operations that are seen
            one_hot = functional.one_hot(targets, logits.shape[1])
            softmax = (logits - logits.logsumexp(-1, keepdim=True)).exp()
            return (softmax - one_hot) * d_losses[:, None], None
        d_logits, d_losses = torch.empty_like(logits), d_losses[:, None]
        for at in _pieces(logits):
            torch.sub(logits[at], normalizer[at, None], out=d_logits[at])
            d_logits[at].exp_().mul_(d_losses[at])
        return d_logits.scatter_add_(1, targets[:, None], -d_losses), None


def _pieces(logits: torch.Tensor) -> list[slice]:
    return slices(len(logits), max(1, PIECE_LOGITS // logits.shape[1]))
