"""The kernels as custom operations of PyTorch, for code that `torch.compile` compiles.

`torch.compile` sees a custom operation as one node and does not look inside. Otherwise
it would unroll the kernel's loop over time, and compiling would take longer for more
steps. Shapes and dtypes are those of `Kernels` in `ops/backend.py`. All results are
contiguous, and no two results share memory.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

if TYPE_CHECKING:
    from keras_qrnn.ops.backend import Kernels

OPERATIONS = torch.ops.keras_qrnn
Pair: TypeAlias = tuple[torch.Tensor, torch.Tensor]


def linear_scan(
    decay: torch.Tensor,
    inputs: torch.Tensor,
    initial_state: torch.Tensor,
    reverse: bool,
) -> torch.Tensor:
    return OPERATIONS.linear_scan(decay, inputs, initial_state, reverse)


def scan_gradients(
    decay: torch.Tensor,
    initial_state: torch.Tensor,
    states: torch.Tensor,
    gradient: torch.Tensor,
    reverse: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    return OPERATIONS.scan_gradients(decay, initial_state, states, gradient, reverse)


def pool(
    gates: torch.Tensor,
    initial_state: torch.Tensor,
    update_scale: torch.Tensor | float | None,
    pooling: str,
    activate: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    scale = _mask_and_number(update_scale)
    return OPERATIONS.pool(gates, initial_state, *scale, pooling, activate)


def pool_for_inference(
    gates: torch.Tensor,
    initial_state: torch.Tensor,
    update_scale: torch.Tensor | float | None,
    pooling: str,
    activate: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    state = initial_state.to(torch.promote_types(gates.dtype, torch.float32))
    outputs, cells = pool(gates, state, update_scale, pooling, activate)
    return outputs, cells[-1].clone()


def pool_gradients(
    gates: torch.Tensor,
    initial_state: torch.Tensor,
    update_scale: torch.Tensor | float | None,
    pooling: str,
    activate: bool,
    cells: torch.Tensor,
    d_outputs: torch.Tensor,
    d_last: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    scale = _mask_and_number(update_scale)
    return OPERATIONS.pool_gradients(
        gates, initial_state, *scale, pooling, activate, cells, d_outputs, d_last
    )


def _mask_and_number(
    update_scale: torch.Tensor | float | None,
) -> tuple[torch.Tensor | None, float | None]:
    """`update_scale` as a tensor or None, and as a number or None.

    An argument of an operation has one type only, so the operations take two arguments.
    """
    if isinstance(update_scale, torch.Tensor):
        return update_scale, None
    return None, update_scale


def define(kernels_for: "Callable[[torch.Tensor], Kernels]") -> None:
    """Defines the operations. Call it once in a process.

    Args:
        kernels_for: takes an operation's first argument and returns the set of kernels
            that the operation runs.
    """

    def scan(decay: torch.Tensor, *arguments: Any) -> torch.Tensor:
        return kernels_for(decay).linear_scan(decay, *arguments)

    def scan_gradients(decay: torch.Tensor, *arguments: Any) -> Pair:
        return kernels_for(decay).scan_gradients(decay, *arguments)

    def pool(
        gates: torch.Tensor,
        state: torch.Tensor,
        mask: torch.Tensor | None,
        number: float | None,
        *arguments: Any,
    ) -> Pair:
        scale = number if mask is None else mask
        return kernels_for(gates).pool(gates, state, scale, *arguments)

    def pool_gradients(
        gates: torch.Tensor,
        state: torch.Tensor,
        mask: torch.Tensor | None,
        number: float | None,
        *arguments: Any,
    ) -> Pair:
        scale = number if mask is None else mask
        return kernels_for(gates).pool_gradients(gates, state, scale, *arguments)

    _define(
        "linear_scan(Tensor decay, Tensor inputs, Tensor initial_state, bool reverse)"
        " -> Tensor",
        scan,
        lambda decay, inputs, *_: inputs.new_empty(inputs.shape),
    )
    _define(
        "scan_gradients(Tensor decay, Tensor initial_state, Tensor states, "
        "Tensor gradient, bool reverse) -> (Tensor, Tensor)",
        scan_gradients,
        lambda decay, *_: (decay.new_empty(decay.shape), decay.new_empty(decay.shape)),
    )
    _define(
        "pool(Tensor gates, Tensor initial_state, Tensor? mask, float? number, "
        "str pooling, bool activate) -> (Tensor, Tensor)",
        pool,
        lambda gates, state, *_: (
            gates.new_empty((*gates.shape[:2], state.shape[1])),
            state.new_empty((*gates.shape[:2], state.shape[1])),
        ),
    )
    _define(
        "pool_gradients(Tensor gates, Tensor initial_state, Tensor? mask, "
        "float? number, str pooling, bool activate, Tensor cells, Tensor d_outputs, "
        "Tensor d_last) -> (Tensor, Tensor)",
        pool_gradients,
        lambda gates, state, *_: (
            gates.new_empty(gates.shape),
            state.new_empty(state.shape),
        ),
    )


def _define(schema: str, function: Callable, like: Callable) -> None:
    """Defines one operation.

    Args:
        schema: the operation's name and the types of its arguments and results, in the
            notation of `torch.library`.
        function: computes the results. It changes no argument.
        like: takes the same arguments and returns empty tensors of the results' shapes
            and dtypes.
    """

    def run(*arguments: Any) -> torch.Tensor | Pair:
        results = function(*arguments)
        if isinstance(results, torch.Tensor):
            return results.contiguous()
        first, second = results  # under f-pooling both may be one tensor
        second = second.clone() if second is first else second
        return first.contiguous(), second.contiguous()

    name, types = schema.split("(", 1)
    operation = torch.library.custom_op(
        f"keras_qrnn::{name}", run, mutates_args=(), schema=f"({types}"
    )
    operation.register_fake(like)
