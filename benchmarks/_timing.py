"""Shared by the benchmark scripts: backend calls, timing, and result files.

A result file is a CSV with one measurement a row. A script may measure a part of its
grid: it replaces the rows with the same key and keeps the others.
"""

import argparse
import contextlib
import csv
import gc
import importlib.util
import math
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import keras
import numpy as np

from keras_qrnn._files import write_csv
from keras_qrnn._types import Tensor
from keras_qrnn.training.environment import accelerator
from keras_qrnn.training.run_directory import check_directory

RESULTS = Path(__file__).parent / "results"
BACKEND = keras.config.backend()
ON_GPU = accelerator(BACKEND) is not None
# On a GPU, a run is a burst of calls that takes about this many seconds. The calls are
# queued without waiting for each, like the layers of a model.
BURST = 0.01
if BACKEND == "torch" and ON_GPU:
    import torch

    # TensorFloat-32 in all products of float32: JAX and cuDNN's LSTM use it too.
    torch.set_float32_matmul_precision("high")


def has_float64() -> bool:
    """Whether the backend computes in float64. JAX has to be asked to."""
    if BACKEND != "jax":
        return True
    import jax

    return jax.config.jax_enable_x64


def parse(
    parser: argparse.ArgumentParser, arguments: list[str] | None, quick: str
) -> argparse.Namespace:
    """The options of a script, with `--results` and `--quick` added.

    Without `--results` a quick trial writes its files into a temporary directory.
    """
    parser.add_argument("--results", type=directory, help="of the result files")
    parser.add_argument("--quick", action="store_true", help=f"{quick}, for a trial")
    options = parser.parse_args(arguments)
    gpu_time = getattr(options, "gpu_time", False)
    compiled = getattr(options, "compile", False)
    if gpu_time and not (ON_GPU and BACKEND == "torch"):
        parser.error("--gpu_time is for PyTorch on a GPU")
    if compiled and BACKEND != "torch":
        parser.error(f"--compile is for PyTorch. Received: KERAS_BACKEND={BACKEND}")
    if getattr(options, "dtype", None) == "float64" and not has_float64():
        parser.error("--dtype float64 needs JAX_ENABLE_X64=1 in the environment")
    if options.results is None:
        # PyTorch with Numba has its own directory, beside that of PyTorch without.
        numba = BACKEND == "torch" and importlib.util.find_spec("numba")
        variant = "_cuda" if ON_GPU else "_numba" if numba else ""
        variant += "_gpu_time" * gpu_time + "_compiled" * compiled
        options.results = RESULTS / f"{BACKEND}{variant}"
        if options.quick:
            options.results = Path(tempfile.mkdtemp(prefix="benchmarks-"))
    return options


def tensor(array: np.ndarray, dtype: str | None = None) -> Tensor:
    """`array` as a tensor of the active backend. Gradients by it can be taken."""
    made = keras.ops.convert_to_tensor(array, dtype)
    return made.requires_grad_() if BACKEND == "torch" else made


def noise(shape: Sequence[int], seed: int = 0) -> np.ndarray:
    """Normal float32 noise of `shape`. It repeats after 2^20 values.

    Drawing all values of a large array would take longer than timing a layer.
    """
    drawn = np.random.default_rng(seed).normal(size=min(math.prod(shape), 2**20))
    return np.resize(drawn.astype("float32"), shape)


def forward(function: Callable) -> Callable:
    """`function(*tensors)` as Keras runs it in inference.

    On a machine without a GPU, Keras does not use XLA in TensorFlow. Nor does this.
    """
    if BACKEND == "jax":
        import jax

        return jax.jit(function)
    if BACKEND == "torch":
        import torch

        return torch.no_grad()(function)
    import tensorflow as tf

    return tf.function(function, autograph=False)


def forward_backward(
    function: Callable,
    cotangent: Tensor,
    variables: Sequence = (),
) -> Callable:
    """Computes `function(*tensors)` and the gradients by its arguments.

    Args:
        function: takes tensors and returns one tensor.
        cotangent: the gradient by the output.
        variables: variables whose gradients are also computed, on PyTorch and
            TensorFlow. On JAX a variable's value is an argument of `function`.
    """
    if BACKEND == "jax":
        import jax

        def step(cotangent: Tensor, *tensors: Tensor) -> tuple:
            outputs, pullback = jax.vjp(function, *tensors)
            return outputs, pullback(cotangent)

        compiled = jax.jit(step)
        return lambda *tensors: compiled(cotangent, *tensors)
    if BACKEND == "torch":
        import torch

        def step(*tensors) -> tuple:
            outputs = function(*tensors)
            return outputs, torch.autograd.grad(
                outputs, [*tensors, *variables], cotangent
            )

        return step
    import tensorflow as tf

    def step(*tensors) -> tuple:
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            outputs = function(*tensors)
        gradients = tape.gradient(outputs, [*tensors, *variables], cotangent)
        return outputs, gradients

    return tf.function(step, autograph=False)


def layer_calls(
    layer: keras.Layer,
    x: Tensor,
    cotangent: Tensor,
    by_input: bool = True,
    mask: Tensor | None = None,
    compiled: bool = False,
) -> dict[str, Callable]:
    """Inference and training step of a layer, as `predict` and `fit` run it.

    A training step is the forward pass and the gradients by the weights and by `x`.

    Args:
        layer: a Keras layer, built or not.
        x: the layer's input.
        cotangent: the gradient by the layer's output.
        by_input: whether the gradient by `x` is computed.
        mask: bool tensor of shape `(batch, time)`, or None.
        compiled: PyTorch: whether `torch.compile` compiles the layer, on a GPU with
            CUDA graphs.
    """
    if not layer.built:
        layer.build(x.shape)
    options = {} if mask is None else {"mask": mask}
    if BACKEND == "jax":
        values = [v.value for v in layer.trainable_variables]
        rest = [v.value for v in layer.non_trainable_variables]

        def call(x: Tensor, *values: Tensor, training: bool) -> Tensor:
            return layer.stateless_call(values, rest, x, training=training, **options)[
                0
            ]

        infer = forward(partial(call, training=False))
        function = partial(call, training=True)
        arguments = (x, *values) if by_input else values
        if not by_input:
            function = partial(function, x)
        train = forward_backward(function, cotangent)
        return {
            "inference": lambda: infer(x, *values),
            "training": lambda: train(*arguments),
        }

    def run(x: Tensor, training: bool) -> Tensor:
        return layer(x, training=training, **options)

    if compiled:
        import torch

        mode = "reduce-overhead" if ON_GPU else None
        # Each shape is compiled for itself. By default the second shape would be
        # compiled for all others, and after 8 shapes PyTorch would compile no more.
        torch._dynamo.config.recompile_limit = 1000
        torch._dynamo.config.accumulated_recompile_limit = 1000
        compiled_run = torch.compile(run, mode=mode, dynamic=False, fullgraph=True)

        def run(x: Tensor, training: bool) -> Tensor:
            # The results of earlier calls may be overwritten.
            torch.compiler.cudagraph_mark_step_begin()
            return compiled_run(x, training)

    infer = forward(lambda x: run(x, training=False))
    inputs = [x] if by_input else []
    train = forward_backward(
        lambda *inputs: run(*(inputs or [x]), training=True),
        cotangent,
        [v.value for v in layer.trainable_variables],
    )
    calls = {"inference": lambda: infer(x), "training": lambda: train(*inputs)}
    if compiled:
        for call in calls.values():
            # The first call compiles, the second records a CUDA graph.
            for _ in range(3):
                call()
    return calls


def wait(results: Tensor | tuple) -> None:
    """Returns when `results` have been computed."""
    if BACKEND == "jax":
        import jax

        jax.block_until_ready(results)
    elif BACKEND == "torch":
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
    else:
        import tensorflow as tf

        tf.test.experimental.sync_devices()


def gpu_seconds(call: Callable, burst: int, busy: float) -> float:
    """Seconds that the GPU takes for one of `burst` calls, without Python (PyTorch).

    The GPU first sleeps for `busy` seconds. In this time Python queues the calls.
    """
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(round(busy * 2e9))  # cycles
    start.record()
    for _ in range(burst):
        call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3 / burst


def measure(
    calls: dict[str, Callable],
    seconds: float = 1.0,
    max_rounds: int = 30,
    gpu_time: bool = False,
) -> dict[str, dict]:
    """Times each call. The calls run in turns, so a slow spell slows all of them.

    Args:
        calls: functions without arguments, by name.
        seconds: seconds that each call runs in all, about, without its warm-up.
        max_rounds: the largest number of runs of a call. The smallest is 3.
        gpu_time: whether to measure with `gpu_seconds`.

    Returns:
        For each name `min`, `median` and `max` in seconds, and `runs`, their number.
    """

    def timed(call: Callable, burst: int = 1) -> float:
        start = time.perf_counter()
        for _ in range(burst):
            results = call()
        wait(results)
        return (time.perf_counter() - start) / burst

    for call in calls.values():
        timed(call)  # compiles
    gc.collect()
    bursts, wall = dict.fromkeys(calls, 1), {}
    if ON_GPU:
        wall = {name: timed(call) for name, call in calls.items()}
        bursts = {n: max(1, min(200, round(BURST / t))) for n, t in wall.items()}

    def run(name: str) -> float:
        if gpu_time:
            busy = 1.5 * bursts[name] * wall[name]
            return gpu_seconds(calls[name], bursts[name], busy)
        return timed(calls[name], bursts[name])

    times = {name: [run(name)] for name in calls}
    spent = {n: bursts[n] * max(t, wall.get(n, 0)) for n, (t,) in times.items()}
    for n in range(1, max_rounds):
        for name in calls:
            if n < 3 or n * spent[name] < seconds:
                times[name].append(run(name))
    return {
        name: {
            "min": min(t),
            "median": statistics.median(t),
            "max": max(t),
            "runs": len(t),
        }
        for name, t in times.items()
    }


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a result file. An empty list if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def merge_rows(path: Path, rows: list[dict], key: Sequence[str]) -> None:
    """Adds rows to a result file. They replace rows with the same values of `key`."""
    merged = {}
    for row in [*read_rows(path), *rows]:
        row = {
            name: f"{value:.4g}" if isinstance(value, float) else str(value)
            for name, value in row.items()
        }
        merged[tuple(row[name] for name in key)] = row
    write_csv(path, list(merged.values()))


def checked_names(names: Iterable[str] | None, known: Iterable[str]) -> list[str]:
    """The names of an option `--names`, or all that are known if it was not given.

    Raises:
        SystemExit: if a name is not known.
    """
    known = list(known)
    names = known if names is None else list(names)
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(
            f"Option `names` must be of {', '.join(known)}. "
            f"Received: {', '.join(unknown)}"
        )
    return names


# Values of options, as the command line has them. An error names the option.


def positive_int(text: str) -> int:
    """A positive integer."""
    if not re.fullmatch("[0-9]+", text) or int(text) == 0:
        raise _refused("a positive integer", text)
    return int(text)


def zero_or_more(text: str) -> float:
    """0 or a positive number."""
    with contextlib.suppress(ValueError):
        if 0 <= float(text) < math.inf:
            return float(text)
    raise _refused("0 or a positive number", text)


def positive_float(text: str) -> float:
    """A positive number."""
    with contextlib.suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise _refused("a positive number", text)


def directory(text: str) -> Path:
    """A directory, which need not exist."""
    if text:
        with contextlib.suppress(NotADirectoryError):
            check_directory("results", Path(text))
            return Path(text)
    raise _refused("a directory, not a file nor in one", text)


def existing_directory(text: str) -> Path:
    """A directory that exists."""
    if not text or not Path(text).is_dir():
        raise _refused("a directory that exists", text)
    return Path(text)


def int_list(text: str) -> list[int]:
    """`"8,16"` as positive integers."""
    return _different([positive_int(part) for part in text.split(",")], text)


def float_list(text: str) -> list[float]:
    """`"0.5,1"` as positive numbers."""
    return _different([positive_float(part) for part in text.split(",")], text)


def shape_list(text: str) -> list[tuple[int, ...]]:
    """`"20x105x640,8x512x320"` as tuples: batch, time and units."""
    shapes = [tuple(map(positive_int, shape.split("x"))) for shape in text.split(",")]
    if {len(shape) for shape in shapes} != {3}:
        raise _refused("shapes as batch x time x units, such as 8x512x320", text)
    return _different(shapes, text)


def name_list(text: str) -> list[str]:
    """`"QRNN,floor"` as names."""
    return _different(text.split(","), text)


def names_of(*known: str) -> Callable[[str], list[str]]:
    """The function that takes `"qrnn,lstm"` as names, all of them known."""

    def names(text: str) -> list[str]:
        found = name_list(text)
        if not set(found) <= set(known):
            raise _refused(f"of {', '.join(known)}", text)
        return found

    return names


def _different(values: list, text: str) -> list:
    if len(set(values)) < len(values):
        raise _refused("different values", text)
    return values


def _refused(expected: str, text: str) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"must be {expected}. Received: {text!r}")
