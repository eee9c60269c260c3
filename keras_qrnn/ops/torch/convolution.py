"""The causal convolution and its gradient by hand, as products or as oneDNN's own."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.autograd import Function
from torch.nn import functional
from torch.nn.grad import conv2d_input, conv2d_weight

from keras_qrnn.ops.torch import recorded
from keras_qrnn.ops.torch.dispatch import is_recorded
from keras_qrnn.ops.torch.loops import pieces

ONEDNN = torch.backends.mkldnn.is_available()
# MKL on one of Intel's processors. Newer versions of PyTorch tell a processor's name.
CPU: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
MKL_AT_HOME = torch.backends.mkl.is_available() and CPU.get("cpu_name", "").startswith(
    "Intel"
)


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
    run = Convolution if takes_convolution(inputs) else Products
    return run.apply(inputs, kernel, bias).transpose(0, 1)


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


def takes_convolution(inputs: torch.Tensor) -> bool:
    """Whether oneDNN's convolution runs, instead of one product for each tap.

    In float32, oneDNN's convolution is up to twice as slow as MKL's products on Intel's
    processors, and twice as fast on others. It takes no empty batch.
    """
    float32 = inputs.dtype == torch.float32
    return (
        ONEDNN and inputs.is_cpu and float32 and not MKL_AT_HOME and inputs.numel() > 0
    )


class Products(Function):
    """One matrix product for each tap, on views: the window is never copied.

    `inputs` has shape `(window - 1 + time, batch, features)` and is contiguous, `bias`
    has shape `(channels,)` or `(batch, channels)`; the result has shape
    `(time, batch, channels)`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: torch.Tensor,
        kernel: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(inputs, kernel)
        ctx.bias_axes = 1 if bias is None else bias.dim()
        time = inputs.shape[0] - len(kernel) + 1
        seen, *others = _seen(inputs, len(kernel))
        if bias is None:
            outputs = torch.mm(seen, kernel[0])
        elif bias.dim() == 1:
            outputs = torch.addmm(bias, seen, kernel[0])
        else:
            outputs = bias.repeat(time, 1).addmm_(seen, kernel[0])
        for tap, seen in zip(kernel[1:], others, strict=True):
            outputs.addmm_(seen, tap)
        return outputs.view(time, inputs.shape[1], kernel.shape[2])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if is_autocast(gradient):
            with torch.autocast(gradient.device.type, enabled=False):
                return Products.backward(ctx, gradient)
        inputs, kernel = ctx.saved_tensors
        if is_recorded(gradient):
            return _recorded_gradients(inputs, kernel, gradient, ctx.bias_axes)
        d_inputs = d_kernel = d_bias = None
        matrix = gradient.reshape(-1, kernel.shape[2])
        if ctx.needs_input_grad[0]:
            d_inputs = torch.zeros_like(inputs)
            for tap, d_seen in zip(kernel, _seen(d_inputs, len(kernel)), strict=True):
                d_seen.addmm_(matrix, tap.T)
        if ctx.needs_input_grad[1]:
            taps = _seen(inputs, len(kernel))
            d_kernel = torch.stack([seen.T @ matrix for seen in taps])
        if ctx.needs_input_grad[2]:
            d_bias = matrix.sum(0) if ctx.bias_axes == 1 else gradient.sum(0)
        return d_inputs, d_kernel, d_bias


def _seen(inputs: torch.Tensor, window: int) -> Iterator[torch.Tensor]:
    """For each tap of a window its inputs, as views `(time * batch, features)`."""
    time = inputs.shape[0] - window + 1
    for j in range(window):
        yield inputs[j : j + time].view(-1, inputs.shape[2])


class Convolution(Function):
    """`Products` as the convolution of one image of time by batch pixels.

    The image's channels are last in memory, so `inputs` is not copied. Each of the
    three products gets the kernel in the memory order that is fastest in oneDNN.
    Autograd would use one order for all three.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: torch.Tensor,
        kernel: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(inputs, kernel)
        ctx.bias_axes = 1 if bias is None else bias.dim()
        image, weight = _image(inputs), _channels_last(kernel)
        if bias is None or bias.dim() == 1:  # oneDNN takes no other bias
            return functional.conv2d(image, weight, bias)[0].permute(1, 2, 0)
        return functional.conv2d(image, weight)[0].permute(1, 2, 0).add_(bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if is_autocast(gradient):
            with torch.autocast(gradient.device.type, enabled=False):
                return Convolution.backward(ctx, gradient)
        inputs, kernel = ctx.saved_tensors
        if is_recorded(gradient):
            return _recorded_gradients(inputs, kernel, gradient, ctx.bias_axes)
        d_inputs = d_kernel = d_bias = None
        if ctx.needs_input_grad[0]:
            shape, weight = _image(inputs).shape, _channels_last(kernel)
            d_image = conv2d_input(shape, weight, _image(gradient))
            d_inputs = d_image[0].permute(1, 2, 0)
        if ctx.needs_input_grad[1]:
            shape = kernel.permute(2, 1, 0)[..., None].shape
            d_weight = gradient.new_zeros(shape)
            time, batch = gradient.shape[:2]
            for at in pieces(time, batch, is_cpu=True):
                seen = _image(inputs[at.start : at.stop + len(kernel) - 1])
                d_weight = d_weight + conv2d_weight(seen, shape, _image(gradient[at]))
            d_kernel = d_weight[..., 0].permute(2, 1, 0)
        if ctx.needs_input_grad[2]:
            d_bias = gradient.sum((0, 1) if ctx.bias_axes == 1 else 0)
        return d_inputs, d_kernel, d_bias


def _recorded_gradients(
    inputs: torch.Tensor, kernel: torch.Tensor, gradient: torch.Tensor, bias_axes: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    d_inputs, d_kernel, d_bias = recorded.causal_conv_gradients(
        inputs.transpose(0, 1), kernel, gradient.transpose(0, 1), bias_axes
    )
    return d_inputs.transpose(0, 1), d_kernel, d_bias


def _image(sequence: torch.Tensor) -> torch.Tensor:
    """`(time, batch, channels)` as an image `(1, channels, time, batch)`: a view."""
    return sequence.permute(2, 0, 1)[None]


def _channels_last(kernel: torch.Tensor) -> torch.Tensor:
    """The kernel as a convolution's weight, features innermost in memory."""
    return kernel.permute(2, 0, 1).contiguous()[:, :, None].permute(0, 3, 1, 2)
