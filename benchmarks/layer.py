"""The paper's speed table: a 320-unit QRNN layer against LSTM, GRU and the floor.

    KERAS_BACKEND=jax python benchmarks/layer.py [--batches 8,16] [--times 32,512]
        [--dtype bfloat16] [--gpu_time] [--compile] [--mask] [--layers N]

The floor is the layer's matrix products alone: one in inference, three in training (one
forward, two for the gradients by the inputs and by the kernel). A training step is the
forward pass and the gradients by the inputs and all weights.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import keras
import numpy as np
from _timing import (
    BACKEND,
    checked_names,
    forward,
    forward_backward,
    int_list,
    layer_calls,
    measure,
    merge_rows,
    name_list,
    noise,
    parse,
    positive_int,
    read_rows,
    tensor,
    zero_or_more,
)
from report import speedups

from keras_qrnn import QRNN, QRNNStack
from keras_qrnn._types import Tensor
from keras_qrnn.training.command_line import Parser
from keras_qrnn.training.environment import environment
from keras_qrnn.training.plots import pyplot, save_figure

UNITS = 320
DTYPES = ("float32", "float64", "bfloat16", "float16")
KEY = ("batch", "time", "units", "dtype", "mode", "name")


def torch_lstm(x: Tensor, units: int, cotangent: Tensor) -> dict[str, Callable]:
    import torch

    layer = torch.nn.LSTM(
        x.shape[-1], units, batch_first=True, device=x.device, dtype=x.dtype
    )
    infer = forward(lambda x: layer(x)[0])
    train = forward_backward(lambda x: layer(x)[0], cotangent, list(layer.parameters()))
    return {"inference": lambda: infer(x), "training": lambda: train(x)}


def floor(rows: int, depth: int, channels: int, dtype: str) -> dict[str, Callable]:
    x, kernel, cotangent = (
        tensor(noise(shape, seed), dtype)
        for seed, shape in enumerate(
            ((rows, depth), (depth, channels), (rows, channels)), start=1
        )
    )
    infer = forward(keras.ops.matmul)
    # Only the three products: the outputs would be a fourth array to write.
    train = forward_backward(keras.ops.matmul, cotangent)
    return {"inference": lambda: infer(x, kernel), "training": lambda: train(x, kernel)}


def right_padded(batch: int, time: int) -> Tensor:
    """A mask `(batch, time)`. Each sequence has from `time / 2` to `time` steps."""
    lengths = np.random.default_rng(0).integers(-(-time // 2), time + 1, (batch, 1))
    return keras.ops.convert_to_tensor(np.arange(time) < lengths)


def cell_calls(
    batch: int,
    time: int,
    units: int,
    dtype: str,
    names: list[str] | None = None,
    compiled: bool = False,
    masked: bool = False,
    layers: int | None = None,
) -> dict[tuple[str, str], Callable]:
    """The calls to time in one cell of the grid, by mode and name.

    Args:
        batch: number of sequences of a batch.
        time: number of steps of a sequence.
        units: features of the inputs and of the outputs.
        dtype: dtype of the inputs and the weights.
        names: names of the calls to time. Defaults to all.
        compiled: PyTorch: whether `torch.compile` compiles the QRNN.
        masked: whether to time only Keras's layers, each with a mask and without.
        layers: number of layers. The calls are then a `QRNNStack` of them, and as many
            `QRNN` one after another.
    """
    x, cotangent = (tensor(noise((batch, time, units), n), dtype) for n in range(2))
    same = {"return_sequences": True, "dtype": dtype}
    # The default initializer, orthogonal, does not work in bfloat16.
    recurrent = same | {"recurrent_initializer": "glorot_uniform"}
    keras_layers = {
        "QRNN": QRNN(units, **same),
        "keras LSTM": keras.layers.LSTM(units, **recurrent),
        "keras GRU": keras.layers.GRU(units, **recurrent),
    }
    if layers:
        several = [QRNN(units, **same) for _ in range(layers)]
        keras_layers = {
            f"QRNNStack of {layers}": QRNNStack(units, layers, **same),
            f"{layers} QRNNs": keras.Sequential(several),
        }
    made = {}
    for name, layer in keras_layers.items():
        compile_it = compiled and name == "QRNN"
        made[name] = partial(layer_calls, layer, x, cotangent, compiled=compile_it)
    if masked:
        mask = right_padded(batch, time)
        for name, calls in list(made.items()):
            made[f"masked {name}"] = partial(calls, mask=mask)
    else:
        depth, channels = 2 * units, 3 * units
        made["floor"] = partial(floor, batch * time, depth, channels, dtype)
        if BACKEND == "torch":
            made["torch LSTM"] = partial(torch_lstm, x, units, cotangent)
    return {
        (mode, name): call
        for name in checked_names(names, made)
        for mode, call in made[name]().items()
    }


def cell_rows(
    calls: dict[tuple[str, str], Callable],
    cell: dict[str, int | str],
    seconds: float,
    gpu_time: bool = False,
) -> list[dict]:
    """Times the calls of `cell_calls`. Returns rows of the result file.

    Args:
        calls: the calls, by mode and name.
        cell: the columns `batch`, `time`, `units` and `dtype`.
        seconds: seconds for each call.
        gpu_time: PyTorch: whether only the GPU's part of the time counts.
    """
    rows = []
    for mode in ("inference", "training"):
        chosen = {key: call for key, call in calls.items() if key[0] == mode}
        for (_, name), spread in measure(chosen, seconds, gpu_time=gpu_time).items():
            rows.append(cell | {"mode": mode, "name": name} | spread | environment())
    return rows


def plot(path: Path, rows: list[dict]) -> None:
    """Draws how many times as fast as the fastest LSTM the QRNN is, batch by time."""
    tables = {mode: speedups(rows, mode=mode) for mode in ("training", "inference")}
    figure, axes = pyplot().subplots(
        1, len(tables), figsize=(6 * len(tables), 4.2), squeeze=False, layout="tight"
    )
    for axis, (mode, ratios) in zip(axes[0], tables.items(), strict=True):
        batches = sorted({batch for batch, _ in ratios})
        times = sorted({time for _, time in ratios})
        values = np.full((len(batches), len(times)), np.nan)
        for (batch, time), ratio in ratios.items():
            values[batches.index(batch), times.index(time)] = ratio
        middle = np.sqrt(np.nanmin(values) * np.nanmax(values))
        for (row, column), ratio in np.ndenumerate(values):
            if np.isfinite(ratio):
                colour = "black" if ratio > middle else "white"
                text = {"ha": "center", "va": "center", "color": colour}
                axis.text(column, row, f"{ratio:.1f}", **text)
        axis.imshow(np.log(values), cmap="viridis", aspect="auto")
        axis.set_xticks(range(len(times)), times)
        axis.set_yticks(range(len(batches)), batches)
        axis.set_xlabel("time")
        axis.set_ylabel("batch")
        axis.set_title(f"{mode}: times as fast as the fastest LSTM\n{BACKEND}")
    save_figure(figure, path)


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int_list, default="8,16,32,64,128,256")
    parser.add_argument("--times", type=int_list, default="32,64,128,256,512")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="of inputs and weights"
    )
    parser.add_argument("--names", type=name_list, help="only these, e.g. 'QRNN,floor'")
    parser.add_argument(
        "--gpu_time", action="store_true", help="without Python's part (PyTorch, GPU)"
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="the QRNN by torch.compile, with CUDA graphs on a GPU (PyTorch)",
    )
    parser.add_argument(
        "--mask",
        action="store_true",
        help="Keras's layers with a right-padded mask and without, into mask.csv",
    )
    parser.add_argument(
        "--layers",
        type=positive_int,
        help="N: a QRNNStack of N layers against N QRNNs one after another, each with "
        "a right-padded mask and without, into stack.csv",
    )
    parser.add_argument(
        "--seconds", type=zero_or_more, default=0.7, help="for each timing"
    )
    options = parse(parser, arguments, quick="one tiny cell")
    units = UNITS
    if options.quick:
        options.batches, options.times, units = [2], [8], 4
        options.seconds = 0.01
    options.mask = options.mask or options.layers is not None
    file = (
        "stack.csv" if options.layers else "mask.csv" if options.mask else "layer.csv"
    )
    path = options.results / file
    names = options.names
    for batch in options.batches:
        for time in options.times:
            cell = {"batch": batch, "time": time, "units": units}
            cell |= {"dtype": options.dtype}
            calls = cell_calls(
                **cell,
                names=names,
                compiled=options.compile,
                masked=options.mask,
                layers=options.layers,
            )
            rows = cell_rows(calls, cell, options.seconds, options.gpu_time)
            merge_rows(path, rows, KEY)
            for row in rows:
                print(
                    f"{BACKEND} {row['mode']:10}{batch:4} x{time:4} {row['name']:21}"
                    f"{1e3 * row['median']:10.3f} ms ({1e3 * row['min']:.3f} to "
                    f"{1e3 * row['max']:.3f}, {row['runs']} runs)",
                    flush=True,
                )
            keras.utils.clear_session()
    rows = [
        row
        for row in read_rows(path)
        if (row["units"], row["dtype"]) == (str(units), options.dtype)
    ]
    compared = not names or ("QRNN" in names and any("LSTM" in name for name in names))
    if compared and not options.mask:
        other = "" if options.dtype == "float32" else f"_{options.dtype}"
        plot(options.results / f"layer{other}.png", rows)


if __name__ == "__main__":
    main()
