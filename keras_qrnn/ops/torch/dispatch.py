"""Which implementation of the scan and of the poolings runs."""

import functools
import importlib
import importlib.util
import warnings
from typing import TYPE_CHECKING, cast

import torch
from torch.autograd import forward_ad

from keras_qrnn.ops.torch import custom_ops, loops

# It notes the number of this process, which has PyTorch's threads. A fork has none. So
# it is imported here, before any fork, and not by Numba's kernels at their first use.
from keras_qrnn.ops.torch import openmp as _openmp  # noqa: F401

if TYPE_CHECKING:
    from keras_qrnn.ops.backend import Kernels

KINDS = (torch.Tensor, torch.nn.Parameter)
is_batch_of_gradients = torch._C._functorch.is_legacy_batchedtensor


def kernels_for(tensor: torch.Tensor, *others: torch.Tensor) -> "Kernels | None":
    """The set of kernels (`Kernels` in `ops/backend.py`) that runs on some arguments.

    Args:
        tensor: one argument. Its device and dtype decide.
        others: further arguments, to look whether something records them.

    Returns:
        A module of kernels. None if only the operations of `recorded.py` may run.
    """
    return None if is_recorded(tensor, *others) else unrecorded_kernels_for(tensor)


def unrecorded_kernels_for(tensor: torch.Tensor) -> "Kernels":
    """`kernels_for` inside an autograd function, which is recorded as a whole."""
    if torch.compiler.is_compiling():
        return custom_ops
    if tensor.is_cuda:
        return _triton() or loops
    # Numba sees memory through NumPy, which has no bfloat16.
    if tensor.is_cpu and tensor.dtype in (torch.float32, torch.float64):
        return _numba() or loops
    return loops


def is_recorded(*tensors: torch.Tensor) -> bool:
    """Whether something has to see each operation on `tensors`.

    These are a trace, an export, a dispatch mode (such as selective checkpointing), a
    transform of `torch.func`, forward-mode differentiation, a batch of gradients and a
    subclass of a tensor. None of them sees the writes of a kernel. Some do not follow
    operations in place.
    """
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return True
    if torch.compiler.is_compiling():
        # `torch.compile` follows views and operations in place. `torch.export`, which
        # sets this too, leaves them in the program, and not every converter knows them.
        return torch.compiler.is_exporting()
    if torch._C._len_torch_dispatch_stack() or torch._C._get_tracing_state():
        return True
    for tensor in tensors:
        # `torch.autograd.grad(..., is_grads_batched=True)` makes batches of gradients.
        if type(tensor) not in KINDS or is_batch_of_gradients(tensor):
            return True
    return False


@functools.cache
def _numba() -> "Kernels | None":
    if importlib.util.find_spec("numba") is None:
        return None
    try:
        return cast("Kernels", importlib.import_module("keras_qrnn.ops.torch.numba"))
    except Exception as error:  # noqa: BLE001 (a NumPy too new for it, LLVM not found)
        warnings.warn(
            "keras_qrnn: Numba is installed but cannot be imported, and the scan and "
            f"the pooling run without it. The reason: {error!r}",
            stacklevel=2,
        )
        return None


@functools.cache
def _triton() -> "Kernels | None":
    try:
        kernels = cast(
            "Kernels", importlib.import_module("keras_qrnn.ops.torch.triton")
        )
        if torch.cuda.is_available():  # the first launch also needs a C compiler
            one = torch.ones((1, 1, 1), device="cuda")
            kernels.linear_scan(one, one, one[0], reverse=False)
    except Exception as error:  # noqa: BLE001 (Triton's, a driver's, a compiler's)
        warnings.warn(
            "keras_qrnn: Triton, which comes with PyTorch's CUDA builds for Linux, "
            "cannot run: on the GPU each time step is launched by itself, which is "
            f"slow. The reason: {error!r}",
            stacklevel=2,
        )
        return None
    return kernels


def _kernels_of_operation(tensor: torch.Tensor) -> "Kernels":
    """`kernels_for` inside an operation of a graph that `torch.compile` made.

    Raises:
        RuntimeError: if something records. It would not see what the operation does. A
            compiled function does not come here: PyTorch compiles it again, with the
            operations of `recorded.py`.
    """
    kernels = kernels_for(tensor)
    if kernels is None:
        raise RuntimeError(
            "An operation of torch.ops.keras_qrnn cannot be traced or differentiated "
            "in forward mode. Call keras_qrnn's functions and layers instead."
        )
    return kernels


custom_ops.define(_kernels_of_operation)
