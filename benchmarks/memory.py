"""Peak memory of a training step against LSTM, and of inference in pieces.

    KERAS_BACKEND=jax python benchmarks/memory.py --names QRNN
    KERAS_BACKEND=jax python benchmarks/memory.py --names "keras LSTM"

The peak is the largest memory of the process minus its memory before, as Linux counts
it. Measure each layer in a process of its own: memory that an allocator keeps from an
earlier layer would hide a part of the peak. JAX and PyTorch also tell which arrays they
keep from the forward to the backward pass.
"""

import ctypes
import gc
import re
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
from _timing import (
    BACKEND,
    checked_names,
    int_list,
    layer_calls,
    merge_rows,
    name_list,
    parse,
    shape_list,
    tensor,
    wait,
)

from keras_qrnn import QRNN
from keras_qrnn.training.command_line import Parser
from keras_qrnn.training.environment import environment

KEY = ("batch", "time", "units", "what", "name")


def resident(field: str) -> int:
    """Bytes of this process: now (VmRSS), or the most since a reset (VmHWM)."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) * 1024


def peak_bytes(call: Callable) -> int:
    """The most bytes that `call()` held at a time, on Linux."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # gives freed memory back to Linux first
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the maximum
    wait(call())
    return max(0, resident("VmHWM") - before)


def kept_bytes(layer: keras.Layer, x) -> int | None:  # noqa: ANN001
    """Bytes of all arrays that are kept for the gradient, without the weights."""
    variables = layer.trainable_variables
    if BACKEND == "jax":
        import jax

        def call(x, *values) -> keras.KerasTensor:  # noqa: ANN001
            rest = layer.non_trainable_variables
            return layer.stateless_call(values, rest, x, training=True)[0]

        values = [v.value for v in variables]
        pullback = jax.jit(lambda *a: jax.vjp(call, *a)[1])(x, *values)
        kept = jax.tree.leaves(pullback)
        weights = {v.shape for v in variables}
        return sum(a.nbytes for a in kept if a.shape not in weights)
    if BACKEND == "torch":
        import torch

        storages = {}

        def pack(array: torch.Tensor) -> torch.Tensor:
            storages[array.untyped_storage().data_ptr()] = array.untyped_storage()
            return array

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda array: array):
            layer(x, training=True)
        for variable in variables:
            storages.pop(variable.value.untyped_storage().data_ptr(), None)
        return sum(storage.nbytes() for storage in storages.values())
    return None


def training(shape: tuple[int, int, int], names: list[str]) -> list[dict]:
    batch, time, units = shape
    rng = np.random.default_rng(0)
    x, cotangent = (tensor(rng.normal(size=shape).astype("float32")) for _ in range(2))
    layers = {
        "QRNN": QRNN(units, return_sequences=True),
        "keras LSTM": keras.layers.LSTM(units, return_sequences=True),
    }
    # The inputs, the logits of three gates and the cell states must be kept.
    rows = [("kept", "bound", 5 * batch * time * units * 4)]
    for name in checked_names(names, layers):
        layer = layers[name]
        step = layer_calls(layer, x, cotangent)["training"]
        # Compiling takes memory. JAX compiles for one size, Numba for all sizes.
        # TensorFlow would keep the memory of a whole step and hide the peak.
        first = step
        if BACKEND != "jax":
            first = layer_calls(layer, x[:1, :2], cotangent[:1, :2])["training"]
        wait(first())
        rows.append(("training peak", name, peak_bytes(step)))
        if (kept := kept_bytes(layer, x)) is not None:
            rows.append(("kept", name, kept))
    size = {"batch": batch, "time": time, "units": units}
    return [size | {"what": w, "name": n, "bytes": b} for w, n, b in rows]


def inference(batch: int, units: int, piece: int, times: list[int]) -> list[dict]:
    layer = QRNN(units, return_sequences=True, stateful=True)
    x = np.zeros((batch, piece, units), "float32")

    def read(time: int) -> None:
        for _ in range(time // piece):
            keras.ops.convert_to_numpy(layer(x)[:, -1])

    read(piece)
    size = {"batch": batch, "units": units, "what": f"inference by {piece}"}
    return [
        size
        | {"time": time, "name": "QRNN", "bytes": peak_bytes(lambda t=time: read(t))}
        for time in times
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", type=shape_list, default="64x512x320")
    parser.add_argument("--times", type=int_list, default="4096,16384,65536")
    parser.add_argument("--names", type=name_list, default="QRNN,keras LSTM")
    options = parse(parser, arguments, quick="tiny shapes")
    batch, units, piece = 8, 320, 512
    if options.quick:
        options.shapes, options.times = [(2, 8, 4)], [8, 16]
        batch, units, piece = 2, 4, 4
    if wrong := [time for time in options.times if time % piece]:
        parser.error(
            f"argument --times: must be multiples of {piece} steps. "
            f"Received: {wrong[0]}"
        )
    rows = [row for shape in options.shapes for row in training(shape, options.names)]
    if "QRNN" in options.names:
        rows += inference(batch, units, piece, options.times)
    order = ("batch", "time", "units", "what", "name", "bytes")
    rows = [{name: row[name] for name in order} | environment() for row in rows]
    merge_rows(options.results / "memory.csv", rows, KEY)
    for row in rows:
        print(
            f"{BACKEND} {row['batch']} x {row['time']} x {row['units']} "
            f"{row['what']:18}{row['name']:12}{row['bytes'] / 2**20:9.1f} MiB"
        )


if __name__ == "__main__":
    main()
