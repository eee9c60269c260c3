"""What `recorded.py` and the kernels share: the accumulator's dtype, and a shift."""

import torch


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for all others."""
    return torch.promote_types(dtype, torch.float32)


def shifted(
    sequence: torch.Tensor, initial: torch.Tensor, reverse: bool, axis: int = 0
) -> torch.Tensor:
    """`sequence` shifted by one step in scan order. The first step is `initial`.

    Args:
        sequence: `(time, batch, units)`, or with time on another `axis`.
        initial: `(batch, units)`.
    """
    initial, steps = initial.unsqueeze(axis), sequence.shape[axis] - 1
    if reverse:
        return torch.cat([sequence.narrow(axis, 1, steps), initial], axis)
    return torch.cat([initial, sequence.narrow(axis, 0, steps)], axis)
