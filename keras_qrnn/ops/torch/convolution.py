"""The causal convolution and its gradient by hand, as matrix products.

On a processor that is not Intel's, oneDNN computes large products of float32. PyTorch's
own function, which calls MKL, computes all others.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.autograd import Function

from keras_qrnn.ops.torch import recorded
from keras_qrnn.ops.torch.dispatch import is_recorded

# oneDNN's `a @ b.T + bias`. It is not public, but PyTorch has no public function that
# calls oneDNN for products of float32.
ONEDNN: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
MKL = torch.backends.mkl.is_available()
# Newer versions of PyTorch tell a processor's name.
CPU: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
IS_INTEL = CPU.get("cpu_name", "").startswith("Intel")
SMALL = 2**21  # Below this many multiplications MKL is faster.
ROWS = 2048  # rows of a product that are added to another at a time


def causal_conv(
    inputs: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    if is_autocast(inputs):
        with autocast(inputs, kernel, bias) as arguments:
            return causal_conv(*arguments).to(inputs.dtype)
    if is_recorded(inputs, kernel):
        return recorded.causal_conv(inputs, kernel, bias)
    return convolve(inputs, kernel, bias)


def convolve(
    inputs: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """`causal_conv` with its gradient by hand, in one dtype, not recorded."""
    inputs = inputs.transpose(0, 1).contiguous()
    kernel = kernel.contiguous()  # oneDNN is slow on a part of a kernel
    # A call of an autograd function takes as long as a small product.
    run = Products.apply if torch.is_grad_enabled() else _outputs
    return run(inputs, kernel, bias).transpose(0, 1)


def is_autocast(tensor: torch.Tensor) -> bool:
    """Whether `torch.autocast` is on for the device of `tensor`."""
    device = tensor.device.type
    # PyTorch raises an error for "meta", where Keras infers shapes.
    return device != "meta" and torch.is_autocast_enabled(device)


@contextmanager
def autocast(
    inputs: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor | None
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]:
    """The arguments in the dtype that `torch.autocast` gives to a convolution.

    Within the block, autocast is off: all functions of this module take one dtype.
    """
    device = inputs.device.type
    dtype = torch.get_autocast_dtype(device)
    if inputs.dtype == torch.float64:  # autocast leaves float64 alone
        dtype = inputs.dtype
    with torch.autocast(device, enabled=False):
        bias = None if bias is None else bias.to(dtype)
        yield inputs.to(dtype), kernel.to(dtype), bias


def takes_onednn(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether oneDNN computes `a @ b`, two matrices of one dtype.

    In float32 MKL is the faster one on Intel's processors. On AMD's, oneDNN is 5 to 20%
    faster, with Zen 5 up to twice as fast. PyTorch cannot differentiate its operation,
    and `torch.compile` refuses it. A call of it costs more than a small product.
    """
    return (
        a.dtype == torch.float32
        and a.is_cpu
        and not IS_INTEL
        and not torch.is_grad_enabled()
        and a.numel() * b.shape[1] >= SMALL
        and not torch.compiler.is_compiling()
        and (MKL and ONEDNN is not None and bool(torch.backends.mkldnn.enabled))
    )


def _outputs(
    inputs: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """One matrix product for each tap, on views: the window is never copied.

    `inputs` has shape `(window - 1 + time, batch, features)` and is contiguous, `bias`
    has shape `(channels,)` or `(batch, channels)`; the result has shape
    `(time, batch, channels)`.
    """
    time = inputs.shape[0] - len(kernel) + 1
    seen, *others = _seen(inputs, len(kernel))
    is_shared = bias is not None and bias.dim() == 1
    outputs = _product(seen, kernel[0], bias if is_shared else None)
    for tap, seen in zip(kernel[1:], others, strict=True):
        _add_product(outputs, seen, tap)
    outputs = outputs.view(time, inputs.shape[1], kernel.shape[2])
    return outputs if bias is None or is_shared else outputs.add_(bias)


class Products(Function):
    """`_outputs` with its gradient by hand."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: torch.Tensor,
        kernel: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(inputs, kernel)
        ctx.bias_axes = 1 if bias is None else bias.dim()
        return _outputs(inputs, kernel, bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if is_autocast(gradient):
            with torch.autocast(gradient.device.type, enabled=False):
                return Products.backward(ctx, gradient)
        inputs, kernel = ctx.saved_tensors
        if is_recorded(gradient):
            found = _recorded_gradients(inputs, kernel, gradient, ctx.bias_axes)
            return *found[:2], found[2] if ctx.needs_input_grad[2] else None
        d_inputs = d_kernel = d_bias = None
        matrix = gradient.contiguous().view(-1, kernel.shape[2])
        if ctx.needs_input_grad[0]:
            d_inputs = torch.zeros_like(inputs)
            for tap, d_seen in zip(kernel, _seen(d_inputs, len(kernel)), strict=True):
                _add_product(d_seen, matrix, tap.T)
        if ctx.needs_input_grad[1]:
            taps = _seen(inputs, len(kernel))
            d_kernel = torch.stack([_product(seen.T, matrix) for seen in taps])
        if ctx.needs_input_grad[2]:
            d_bias = matrix.sum(0) if ctx.bias_axes == 1 else gradient.sum(0)
        return d_inputs, d_kernel, d_bias


def _seen(inputs: torch.Tensor, window: int) -> Iterator[torch.Tensor]:
    """For each tap of a window its inputs, as views `(time * batch, features)`."""
    time = inputs.shape[0] - window + 1
    for j in range(window):
        yield inputs[j : j + time].view(-1, inputs.shape[2])


def _product(
    a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """`a @ b + bias`, all of one dtype, the bias a vector or None."""
    if takes_onednn(a, b):
        return ONEDNN(a, b.T, bias, "none", [], "")
    return torch.mm(a, b) if bias is None else torch.addmm(bias, a, b)


def _add_product(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """`total += a @ b`, in place."""
    if not takes_onednn(a, b):
        total.addmm_(a, b)
        return
    # The product is a new array. That of some rows stays in the caches.
    for rows, part in zip(total.split(ROWS), a.split(ROWS), strict=True):
        rows.add_(ONEDNN(part, b.T, None, "none", [], ""))


def _recorded_gradients(
    inputs: torch.Tensor, kernel: torch.Tensor, gradient: torch.Tensor, bias_axes: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    d_inputs, d_kernel, d_bias = recorded.causal_conv_gradients(
        inputs.transpose(0, 1), kernel, gradient.transpose(0, 1), bias_axes
    )
    return d_inputs.transpose(0, 1), d_kernel, d_bias
