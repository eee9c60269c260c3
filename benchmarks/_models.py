"""Shared by the benchmarks of whole models: options, timed steps, result rows."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from _timing import BACKEND, merge_rows, positive_int, zero_or_more

from keras_qrnn.training.command_line import Parser
from keras_qrnn.training.environment import environment

POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16"}  # by `--dtype`


def model_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks of models take."""
    parser = Parser(description=description)
    parser.add_argument("--dtype", choices=tuple(POLICIES), default="float32")
    parser.add_argument("--steps", type=positive_int, default=10)
    parser.add_argument(
        "--seconds", type=zero_or_more, default=1.0, help="for each part"
    )
    return parser


class Stopwatch(keras.callbacks.Callback):
    """Records the time at the end of each batch, in seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.times = []

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self.times.append(time.perf_counter())

    on_test_batch_end = on_train_batch_end

    def spread(self, skip: int) -> dict:
        steps = np.diff(self.times)[skip:]
        values = {"min": steps.min(), "median": np.median(steps), "max": steps.max()}
        return {n: float(v) for n, v in values.items()} | {"runs": len(steps)}


def whole_steps(model: keras.Model, batches: Any) -> dict[str, dict]:
    """Times steps of `fit` and `evaluate`. The first three steps of each do not count.

    Args:
        model: a compiled model.
        batches: the batches of an epoch, all of one shape, as `fit` takes them.

    Returns:
        For "training" and "evaluation" what `measure` returns for a call.
    """
    spreads = {}
    for part, run in (("training", model.fit), ("evaluation", model.evaluate)):
        watch = Stopwatch()
        options = {"shuffle": False} if part == "training" else {}
        run(batches, verbose=0, callbacks=[watch], **options)
        spreads[part] = watch.spread(skip=2)
    return spreads


def write_parts(
    path: Path,
    spreads: dict[tuple[str, str], dict],
    dtype: str,
    key: Sequence[str],
    same: dict[str, Any],
    unit: str | None = None,
    count: int = 0,
) -> None:
    """Prints the times of models' parts, and merges them into a result file.

    Args:
        path: the file.
        spreads: by cell and part, what `measure` returns for a call.
        dtype: the option of that name.
        key: columns of the file: see `merge_rows`.
        same: further columns, the same in all rows.
        unit: what a step computes, such as "tokens". The rows then have the number of
            them in a second. None for no such column.
        count: how many of them a step computes.
    """
    rows = []
    for (cell, part), spread in spreads.items():
        row = {"cell": cell, "dtype": dtype, "part": part} | same | spread
        line = (
            f"{BACKEND} {cell:14}{dtype:9}{part:21}{1e3 * spread['median']:9.1f} ms "
            f"({1e3 * spread['min']:.1f} to {1e3 * spread['max']:.1f})"
        )
        if unit is not None:
            row[f"{unit}_per_second"] = count / spread["median"]
            line += f", {count / spread['median']:.0f} {unit}/s"
        rows.append(row | environment())
        print(line)
    merge_rows(path, rows, key)
