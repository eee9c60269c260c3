"""`linear_scan` against one pass over the same memory and the other scans.

    KERAS_BACKEND=jax python benchmarks/scan.py [--shapes 20x105x640,8x512x320]

On PyTorch on a GPU it also times the scans of accelerated-scan and
flash-linear-attention, if they are installed (`pip install accelerated-scan fla-core`).
Each gets tensors in its own layout.
"""

import importlib.util
from collections.abc import Callable
from functools import partial

import keras
import numpy as np
from _timing import (
    BACKEND,
    ON_GPU,
    checked_names,
    forward,
    forward_backward,
    measure,
    merge_rows,
    name_list,
    parse,
    shape_list,
    tensor,
    zero_or_more,
)
from keras import ops

from keras_qrnn import linear_scan
from keras_qrnn._types import Tensor
from keras_qrnn.training.command_line import Parser
from keras_qrnn.training.environment import environment

SHAPES = "20x105x640,8x512x320,64x64x512,1x4096x256,1x16384x64,256x64x320"
KEY = ("batch", "time", "units", "direction", "name")


def single_pass(decay: Tensor, inputs: Tensor) -> Tensor:
    """The lower bound of a scan: it reads both arrays once and writes one."""
    if BACKEND == "torch":
        import torch

        return torch.addcmul(inputs, decay, inputs)
    return decay * inputs + inputs


def combine(left: tuple, right: tuple) -> tuple:
    return left[0] * right[0], right[0] * left[1] + right[1]


def keras_associative(decay: Tensor, inputs: Tensor) -> Tensor:
    return ops.associative_scan(combine, (decay, inputs), axis=1)[1]


def own_loop(decay: Tensor, inputs: Tensor) -> Tensor:
    """The scan by the backend's own loop. The backend derives the gradient."""
    if BACKEND == "jax":
        from jax import lax

        def step(state: Tensor, at_t: tuple) -> tuple:
            state = at_t[0] * state + at_t[1]
            return state, state

        major = decay.swapaxes(0, 1), inputs.swapaxes(0, 1)
        return lax.scan(step, ops.zeros_like(decay[:, 0]), major)[1].swapaxes(0, 1)
    if BACKEND == "torch":
        state, states = ops.zeros_like(decay[:, 0]), []
        for d, x in zip(decay.unbind(1), inputs.unbind(1), strict=True):
            state = d * state + x
            states.append(state)
        return ops.stack(states, axis=1)
    import tensorflow as tf

    decay, inputs = (tf.transpose(x, [1, 0, 2]) for x in (decay, inputs))
    time = decay.shape[0]

    def step(t: Tensor, state: Tensor, states: tf.TensorArray) -> tuple:
        state = decay[t] * state + inputs[t]
        return t + 1, state, states.write(t, state)

    states = tf.TensorArray(inputs.dtype, time, element_shape=inputs.shape[1:])
    start = (0, tf.zeros_like(inputs[0]), states)
    states = tf.while_loop(lambda t, *_: t < time, step, start)[2].stack()
    return tf.transpose(states, [1, 0, 2])


def chunk_hgrn(decay: Tensor, inputs: Tensor) -> Tensor:
    """flash-linear-attention's scan in chunks. `decay` is the decay's logarithm."""
    from fla.ops.hgrn import chunk_hgrn

    return chunk_hgrn(inputs, decay)[0]


def fused_recurrent_hgrn(decay: Tensor, inputs: Tensor) -> Tensor:
    """flash-linear-attention's scan step by step. `decay` is the decay's logarithm."""
    from fla.ops.hgrn import fused_recurrent_hgrn

    return fused_recurrent_hgrn(inputs, decay)[0]


def accelerated_scan(decay: Tensor, inputs: Tensor) -> Tensor:
    """accelerated-scan's Triton kernel, for tensors `(batch, units, time)`."""
    from accelerated_scan.scalar import scan

    return scan(decay, inputs)


# Scans of other packages. The second function turns the arguments of `linear_scan` into
# those of the scan. The third turns its results into those of `linear_scan`. Neither is
# timed.
OTHERS = {
    "accelerated-scan": (
        accelerated_scan,
        lambda decay, inputs: (np.swapaxes(decay, 1, 2), np.swapaxes(inputs, 1, 2)),
        lambda states: np.swapaxes(states, 1, 2),
    ),
    "fla chunk_hgrn": (
        chunk_hgrn,
        lambda decay, inputs: (np.log(decay), inputs),
        lambda states: states,
    ),
    "fla fused_recurrent_hgrn": (
        fused_recurrent_hgrn,
        lambda decay, inputs: (np.log(decay), inputs),
        lambda states: states,
    ),
}


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def alternatives() -> dict[str, Callable]:
    """The scans with the arguments of `linear_scan`, by name."""
    scans = {
        "single pass": single_pass,
        "linear_scan": linear_scan,
        "keras.ops.associative_scan": keras_associative,
        "own loop": own_loop,
    }
    if BACKEND == "jax":
        from jax import lax

        scans["lax.associative_scan"] = lambda decay, inputs: lax.associative_scan(
            combine, (decay, inputs), axis=1
        )[1]
    return scans


def others() -> list[str]:
    """The names in `OTHERS` that run here. They need PyTorch, a GPU, the package."""
    if BACKEND != "torch" or not ON_GPU:
        return []
    packages = {"accelerated-scan": "accelerated_scan"}
    return [name for name in OTHERS if installed(packages.get(name, "fla"))]


def scan_calls(
    shape: tuple[int, int, int], names: list[str] | None = None
) -> dict[tuple[str, str], Callable]:
    """The calls to time for one shape, by direction and name. It checks their results.

    Args:
        shape: `(batch, time, units)`.
        names: names of the scans to time beside the single pass. Defaults to all.

    Raises:
        AssertionError: if a scan's states are not those of `linear_scan`.
    """
    rng = np.random.default_rng(0)
    arrays = [rng.uniform(size=shape).astype("float32") for _ in range(2)]
    cotangent = rng.uniform(size=shape).astype("float32")
    same = {
        name: (scan, lambda *arrays: arrays, lambda states: states)
        for name, scan in alternatives().items()
    }
    scans = same | {name: OTHERS[name] for name in others()}
    expected = ops.convert_to_numpy(linear_scan(*map(tensor, arrays)))
    timed = {"single pass", *checked_names(names, scans)}
    calls = {}
    for name, (scan, prepare, restore) in scans.items():
        if name not in timed:
            continue
        arguments = [tensor(np.ascontiguousarray(a)) for a in prepare(*arrays)]
        calls["forward", name] = partial(forward(scan), *arguments)
        if name == "single pass":
            continue
        got = restore(ops.convert_to_numpy(calls["forward", name]()))
        np.testing.assert_allclose(got, expected, 1e-3, 1e-4, err_msg=name)
        # Swapping two axes is its own inverse: `restore` also makes a cotangent.
        above = tensor(np.ascontiguousarray(restore(cotangent)))
        backward = forward_backward(scan, above)
        calls["forward+backward", name] = partial(backward, *arguments)
    return calls


def scan_rows(
    calls: dict[tuple[str, str], Callable],
    shape: tuple[int, int, int],
    seconds: float,
    gpu_time: bool = False,
) -> list[dict]:
    """Times the calls of `scan_calls`. Returns rows of the result file."""
    size = dict(zip(("batch", "time", "units"), shape, strict=True))
    return [
        {**size, "direction": direction, "name": name, **spread, **environment()}
        for (direction, name), spread in measure(
            calls, seconds, gpu_time=gpu_time
        ).items()
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--shapes", type=shape_list, default=SHAPES, help="batch x time x units, ..."
    )
    parser.add_argument(
        "--seconds", type=zero_or_more, default=0.5, help="for each timing"
    )
    parser.add_argument(
        "--names", type=name_list, help="only these, e.g. 'linear_scan,own loop'"
    )
    parser.add_argument(
        "--gpu_time", action="store_true", help="without Python's part (PyTorch, GPU)"
    )
    options = parse(parser, arguments, quick="one tiny shape")
    if options.quick:
        options.shapes, options.seconds = [(2, 8, 4)], 0.01
    for shape in options.shapes:
        calls = scan_calls(shape, options.names)
        rows = scan_rows(calls, shape, options.seconds, options.gpu_time)
        merge_rows(options.results / "scan.csv", rows, KEY)
        one_pass = rows[0]["median"]
        print(f"{BACKEND} {shape}: single pass {1e3 * one_pass:.3f} ms", flush=True)
        for row in rows[1:]:
            passes = one_pass * (1 if row["direction"] == "forward" else 3)
            print(
                f"  {row['direction']:17}{row['name']:28}{1e3 * row['median']:9.3f} ms"
                f" ({1e3 * row['min']:.3f} to {1e3 * row['max']:.3f})"
                f" {row['median'] / passes:7.2f} x"
            )
        keras.utils.clear_session()


if __name__ == "__main__":
    main()
