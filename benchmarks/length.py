"""Times a layer, and compiling it, for sequences of 64 to 65,536 steps.

KERAS_BACKEND=jax python benchmarks/length.py [--times 64,65536]
"""

import time
from pathlib import Path

import keras
import numpy as np
from _timing import (
    BACKEND,
    int_list,
    layer_calls,
    measure,
    merge_rows,
    parse,
    read_rows,
    tensor,
    wait,
    zero_or_more,
)

from keras_qrnn import QRNN
from keras_qrnn.training.command_line import Parser
from keras_qrnn.training.environment import environment
from keras_qrnn.training.plots import pyplot, save_figure

KEY = ("batch", "time", "units", "mode")
TIMES = "64,256,1024,4096,16384,65536"


def benchmark(batch: int, steps: int, units: int, seconds: float) -> list[dict]:
    rng = np.random.default_rng(0)
    x, cotangent = (
        tensor(rng.normal(size=(batch, steps, units)).astype("float32"))
        for _ in range(2)
    )
    calls = layer_calls(QRNN(units, return_sequences=True), x, cotangent)
    rows = []
    for mode, call in calls.items():
        start = time.perf_counter()
        wait(call())
        first = time.perf_counter() - start
        spread = measure({mode: call}, seconds)[mode]
        size = {"batch": batch, "time": steps, "units": units, "mode": mode}
        compiling = {"compile": max(0.0, first - spread["median"])}
        rows.append(size | spread | compiling | environment())
    return rows


def plot(path: Path, rows: list[dict]) -> None:
    figure, axis = pyplot().subplots(figsize=(6, 4.2), layout="tight")
    for mode in ("training", "inference"):
        points = sorted(
            (int(row["time"]), float(row["median"]), float(row["compile"]))
            for row in rows
            if row["mode"] == mode
        )
        times, medians, compiling = zip(*points, strict=True)
        (line,) = axis.loglog(times, medians, "o-", label=mode)
        if BACKEND != "torch":
            label = f"{mode}, compiling"
            axis.loglog(times, compiling, ":", color=line.get_color(), label=label)
    axis.set_xlabel("time steps")
    axis.set_ylabel("seconds")
    axis.set_title(f"QRNN over the length of a sequence, {BACKEND}")
    axis.grid(alpha=0.3)
    axis.legend()
    save_figure(figure, path)


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int_list, default=TIMES)
    parser.add_argument(
        "--seconds", type=zero_or_more, default=0.5, help="for each timing"
    )
    options = parse(parser, arguments, quick="tiny lengths")
    batch, units = 4, 128
    if options.quick:
        options.times, options.seconds, batch, units = [4, 8], 0.01, 2, 4
    path = options.results / "length.csv"
    for steps in options.times:
        rows = benchmark(batch, steps, units, options.seconds)
        merge_rows(path, rows, KEY)
        for row in rows:
            print(
                f"{BACKEND} {row['mode']:10}{steps:6} steps {1e3 * row['median']:9.3f} "
                f"ms, compiling {row['compile']:.2f} s",
                flush=True,
            )
        keras.utils.clear_session()
    plot(path.with_suffix(".png"), read_rows(path))


if __name__ == "__main__":
    main()
