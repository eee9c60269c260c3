"""Which implementation of the scan and of the poolings runs."""

import functools
import importlib
import importlib.util
import warnings
from types import ModuleType

import torch
from torch.autograd import forward_ad

from keras_qrnn.ops.torch import compile as operations
from keras_qrnn.ops.torch import loops

# Imported here, not with Numba's kernels: it notes the process of PyTorch's threads,
# which a fork that first uses the kernels is not.
from keras_qrnn.ops.torch import openmp as _openmp  # noqa: F401


def kernels_for(tensor: torch.Tensor) -> ModuleType | None:
    """The set of kernels (`Kernels` in `ops/backend.py`) that runs on `tensor`.

    None where nothing may run but the operations of `plain.py`.
    """
    if is_recorded(tensor):
        return None
    if torch.compiler.is_compiling():
        return operations
    if tensor.is_cuda:
        return _triton() or loops
    # Numba sees memory through NumPy, which has no bfloat16.
    if tensor.is_cpu and tensor.dtype in (torch.float32, torch.float64):
        return _numba() or loops
    return loops


def is_recorded(tensor: torch.Tensor) -> bool:
    """Whether something has to see each operation on `tensor`.

    That is a trace, an export, a dispatch mode (selective checkpointing is one), a
    transform of `torch.func`, forward-mode differentiation or a subclass of a tensor.
    None of them sees what a kernel writes. Some follow no operation in place.
    """
    if torch.compiler.is_compiling():
        # `torch.export` sets this too. The compiler itself follows views and operations
        # in place, and can be asked for no more than this.
        recorded = torch.compiler.is_exporting()
    else:
        recorded = (
            torch._C._len_torch_dispatch_stack() > 0
            or torch._C._get_tracing_state() is not None
            or type(tensor) not in (torch.Tensor, torch.nn.Parameter)
        )
    return (
        recorded
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )


@functools.cache
def _numba() -> ModuleType | None:
    if importlib.util.find_spec("numba") is None:
        return None
    try:
        return importlib.import_module("keras_qrnn.ops.torch.numba")
    except Exception as error:  # noqa: BLE001 (a NumPy too new for it, LLVM not found)
        warnings.warn(
            "keras_qrnn: Numba is installed but cannot be imported, and the scan and "
            f"the pooling run without it. The reason: {error!r}",
            stacklevel=2,
        )
        return None


@functools.cache
def _triton() -> ModuleType | None:
    try:
        kernels = importlib.import_module("keras_qrnn.ops.torch.triton")
        if torch.cuda.is_available():  # a first launch needs more, a C compiler too
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


operations.define(kernels_for)
