"""Compiles the kernels of `ops/triton.py` to machine code; it needs no GPU.

KERAS_BACKEND=torch TRITON_INTERPRET=0 python -m tests.compile_kernels
"""

import itertools

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from keras_qrnn.ops import triton as kernels

TARGET = GPUTarget("cuda", 80, 32)  # compute capability 8.0, 32 threads a warp
SIZES = {"time": "i32", "batch": "i32", "units": "i32", "width": "i32"}
OFFSETS = {"first": "i64", "step": "i64", "last": "i64", "last_gates": "i64"}


def compiled_size(kernel, types, constants):
    """Bytes of machine code."""
    types = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    places = {(kernel.arg_names.index(name),): v for name, v in constants.items()}
    source = ASTSource(kernel, signature=types, constexprs=places)
    options = {"num_warps": kernels.LANES // 32}
    return len(triton.compile(source, target=TARGET, options=options).asm["cubin"])


def main():
    constants = {"LANES": kernels.LANES}
    for dtype in ("fp32", "fp64"):
        arrays = ("decay", "inputs", "initial_state", "states")
        types = dict.fromkeys(arrays, f"*{dtype}") | SIZES | OFFSETS
        print("scan", dtype, compiled_size(kernels._scan_kernel, types, constants))
    dtypes = [("fp16", "fp32"), ("bf16", "fp32"), ("fp32", "fp32"), ("fp64", "fp64")]
    for (dtype, accumulator), pooling in itertools.product(dtypes, ("f", "fo", "ifo")):
        mask, activate = {"f": ("*i1", True), "fo": (None, True)}.get(
            pooling, (f"*{accumulator}", False)
        )
        outer = ("gates", "outputs", "d_outputs", "d_gates")
        inner = ("initial_state", "cells", "d_last", "d_initial")
        types = dict.fromkeys(outer, f"*{dtype}") | SIZES | OFFSETS
        types |= dict.fromkeys(inner, f"*{accumulator}")
        choices = {"KEEP": 0.9, "POOLING": pooling, "ACTIVATE": activate}
        choices["mask" if mask is None else "LANES"] = mask and kernels.LANES
        types |= {"mask": mask} if mask else {}
        for kernel in (kernels._pool_kernel, kernels._pool_gradient_kernel):
            size = compiled_size(kernel, types, constants | choices)
            print(kernel.fn.__name__, pooling, dtype, mask, activate, size)


if __name__ == "__main__":
    main()
