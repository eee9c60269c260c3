"""Compiles the kernels of `ops/triton.py` to machine code; it needs no GPU.

KERAS_BACKEND=torch TRITON_INTERPRET=0 python -m tests.compile_kernels
"""

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from keras_qrnn.ops import triton as kernels

CAPABILITIES = (80, 90)  # of an A100 and an H100; both run 32 threads a warp
# Of the arrays in the layer's dtype and in that of its accumulator.
DTYPES = (("fp16", "fp32"), ("bf16", "fp32"), ("fp32", "fp32"), ("fp64", "fp64"))
OUTER = ("gates", "outputs", "d_outputs", "d_gates")
INNER = ("initial_state", "cells", "d_last", "d_initial")
SIZES = dict.fromkeys(("time", "units", "width", "gates_width"), "i32")
OFFSETS = dict.fromkeys(("first", "step", "last", "last_gates"), "i64")


def compiled_size(kernel, capability, types, constants):
    """Bytes of machine code."""
    constants = constants | {"LANES": kernels.LANES}
    types = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    places = {(kernel.arg_names.index(name),): v for name, v in constants.items()}
    source = ASTSource(kernel, signature=types, constexprs=places)
    options = {"num_warps": kernels.LANES // 32}
    target = GPUTarget("cuda", capability, 32)
    return len(triton.compile(source, target=target, options=options).asm["cubin"])


def compile_scan(capability, dtype):
    arrays = ("decay", "inputs", "initial_state", "states")
    types = dict.fromkeys(arrays, f"*{dtype}") | SIZES | OFFSETS
    size = compiled_size(kernels._scan_kernel, capability, types, {})
    print("scan", capability, dtype, size, flush=True)


def compile_pool(capability, dtype, accumulator, pooling, mask, activate):
    types = SIZES | OFFSETS | dict.fromkeys(OUTER, f"*{dtype}")
    types |= dict.fromkeys(INNER, f"*{accumulator}")
    constants = {"KEEP": 0.9, "POOLING": pooling, "ACTIVATE": activate}
    if mask:
        types["mask"] = mask
    else:
        constants["mask"] = None
    inference = {"cells": None}, {"last": f"*{accumulator}"}
    for kernel, absent, present in (
        (kernels._pool_kernel, {"last": None}, {}),
        (kernels._pool_kernel, *inference),
        (kernels._pool_gradient_kernel, {}, {}),
    ):
        of = {n: t for n, t in (types | present).items() if n not in absent}
        size = compiled_size(kernel, capability, of, constants | absent)
        print(kernel.fn.__name__, capability, dtype, pooling, mask, activate, size)


def main():
    for capability in CAPABILITIES:
        for dtype in ("fp32", "fp64"):
            compile_scan(capability, dtype)
        for dtype, accumulator in DTYPES:
            for pooling in ("f", "fo", "ifo"):
                compile_pool(capability, dtype, accumulator, pooling, None, True)
                compile_pool(capability, dtype, accumulator, pooling, "*i1", True)
                compile_pool(
                    capability, dtype, accumulator, pooling, f"*{accumulator}", False
                )


if __name__ == "__main__":
    main()
