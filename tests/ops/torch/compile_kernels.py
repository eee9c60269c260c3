"""Compiles the kernels of `ops/torch/triton.py` to machine code; it needs no GPU.

KERAS_BACKEND=torch TRITON_INTERPRET=0 python -m tests.ops.torch.compile_kernels [--all]

Each dtype, each pooling and each other constant occurs at least once, and with each
kernel once the loop that a GPU runs. In the others that loop takes fewer steps at a
time: the compiler needs a third of the time for them. With `--all` each dtype occurs
with each pooling, in the loop that a GPU runs.
"""

import itertools
import sys

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from keras_qrnn.ops.equations import GATES
from keras_qrnn.ops.torch import triton as kernels

# Of the arrays in the layer's dtype and in that of its accumulator.
DTYPES = (("fp16", "fp32"), ("bf16", "fp32"), ("fp32", "fp32"), ("fp64", "fp64"))
OUTER = ("gates", "outputs", "d_outputs", "d_gates")
INNER = ("initial_state", "cells", "last", "d_last", "d_initial", "products", "ends")
SIZES = dict.fromkeys(("time", "length", "units", "width", "gates_width"), "i32")
SIZES |= dict.fromkeys(("first", "step"), "i64")
# What is None in a launch: of all steps at once, of the first pass over chunks of them
# and, where there is another, of the second.
AT_ONCE = ("products", "ends")
SCAN = {"at once": AT_ONCE, "first pass": ("initial_state", "states"), "second": ()}
POOL = {
    "at once": ("last", *AT_ONCE),
    "inference": ("cells", *AT_ONCE),
    "first pass": ("initial_state", "outputs", "cells", "last"),
    "second": ("last",),
    "second, inference": ("cells",),
}
GRADIENT = {
    "at once": AT_ONCE,
    "first pass": ("d_last", "d_gates", "d_initial"),
    "second": (),
}


# A capability of 80 is an A100's and one of 90 an H100's; both run 32 threads a warp.


def compiled_sizes(kernel, capability, types, constants, launches):
    """Prints bytes of machine code."""
    target = GPUTarget("cuda", capability, 32)
    options = {"num_warps": kernels.LANES // 32}
    for name, absent in launches.items():
        given = constants | dict.fromkeys(absent) | {"LANES": kernels.LANES}
        present = {n: t for n, t in types.items() if n not in given}
        signature = {n: present.get(n, "constexpr") for n in kernel.arg_names}
        places = {(kernel.arg_names.index(n),): value for n, value in given.items()}
        source = ASTSource(kernel, signature=signature, constexprs=places)
        code = triton.compile(source, target=target, options=options).asm["cubin"]
        print(kernel.fn.__name__, capability, constants, name, len(code), flush=True)


def compile_scan(capability, dtype):
    arrays = ("decay", "inputs", "initial_state", "states", "products", "ends")
    types = SIZES | dict.fromkeys(arrays, f"*{dtype}")
    compiled_sizes(kernels._scan_kernel, capability, types, {}, SCAN)


def compile_pool(capability, dtype, accumulator, pooling, mask, activate):
    types = SIZES | dict.fromkeys(OUTER, f"*{dtype}")
    types |= dict.fromkeys(INNER, f"*{accumulator}")
    constants = {"SCALE": 0.9, "POOLING": pooling, "ACTIVATE": activate}
    constants["GATES_COUNT"] = len(GATES[pooling])
    if mask:
        types["mask"] = mask
    else:
        constants["mask"] = None
    pairs = (kernels._pool_kernel, POOL), (kernels._pool_gradient_kernel, GRADIENT)
    for kernel, launches in pairs:
        compiled_sizes(kernel, capability, types, constants, launches)


def main():
    half, brain, single, double = DTYPES
    compile_scan(80, "fp32")
    compile_pool(80, *brain, "fo", None, True)
    pairs = [(half, "ifo"), (brain, "fo"), (double, "f"), (single, "ifo")]
    if "--all" in sys.argv:
        pairs = list(itertools.product(DTYPES, GATES))
    else:
        kernels.STEPS = tl.constexpr(2)
    for dtype in ("fp32", "fp64"):
        compile_scan(90, dtype)
    for dtypes, pooling in pairs:
        compile_pool(90, *dtypes, pooling, "*i1", True)
    compile_pool(90, *single, "ifo", "*fp32", False)


if __name__ == "__main__":
    main()
