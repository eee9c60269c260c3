"""`linear_scan` against one pass over the same memory and the other scans.

KERAS_BACKEND=jax python benchmarks/scan.py [--shapes 20x105x640,8x512x320]
"""

import argparse
from collections.abc import Callable

import keras
import numpy as np
from _timing import (
    BACKEND,
    forward,
    forward_backward,
    measure,
    merge_rows,
    parse,
    shape_list,
    tensor,
)
from keras import ops

from keras_qrnn import linear_scan
from keras_qrnn.training.environment import environment

SHAPES = "20x105x640,8x512x320,64x64x512,1x4096x256,1x16384x64,256x64x320"
KEY = ("batch", "time", "units", "direction", "name")


def single_pass(decay, inputs):  # noqa: ANN001, ANN201
    """The least that any scan could do: read both arrays, write one."""
    if BACKEND == "torch":
        import torch

        return torch.addcmul(inputs, decay, inputs)
    return decay * inputs + inputs


def combine(left: tuple, right: tuple) -> tuple:
    return left[0] * right[0], right[0] * left[1] + right[1]


def keras_associative(decay, inputs):  # noqa: ANN001, ANN201
    return ops.associative_scan(combine, (decay, inputs), axis=1)[1]


def own_loop(decay, inputs):  # noqa: ANN001, ANN201
    """The backend's own loop, differentiated by the backend."""
    if BACKEND == "jax":
        from jax import lax

        def step(state, at_t) -> tuple:  # noqa: ANN001
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

    def step(t, state, states) -> tuple:  # noqa: ANN001
        state = decay[t] * state + inputs[t]
        return t + 1, state, states.write(t, state)

    states = tf.TensorArray(inputs.dtype, time, element_shape=inputs.shape[1:])
    start = (0, tf.zeros_like(inputs[0]), states)
    states = tf.while_loop(lambda t, *_: t < time, step, start)[2].stack()
    return tf.transpose(states, [1, 0, 2])


def alternatives() -> dict[str, Callable]:
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


def benchmark(shape: tuple[int, int, int], seconds: float) -> list[dict]:
    rng = np.random.default_rng(0)
    decay, inputs, cotangent = (
        tensor(rng.uniform(size=shape).astype("float32")) for _ in range(3)
    )
    scans = alternatives()
    expected = ops.convert_to_numpy(linear_scan(decay, inputs))
    for name, scan in scans.items():
        if name != "single pass":
            got = ops.convert_to_numpy(forward(scan)(decay, inputs))
            np.testing.assert_allclose(got, expected, 1e-3, 1e-4)
    calls = {
        ("forward", name): (forward(scan), (decay, inputs))
        for name, scan in scans.items()
    }
    for name, scan in scans.items():
        if name != "single pass":
            calls["forward+backward", name] = (
                forward_backward(scan, cotangent),
                (decay, inputs),
            )
    times = measure({k: lambda c=c: c[0](*c[1]) for k, c in calls.items()}, seconds)
    size = dict(zip(("batch", "time", "units"), shape, strict=True))
    return [
        {**size, "direction": direction, "name": name, **spread, **environment()}
        for (direction, name), spread in times.items()
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default=SHAPES, help="batch x time x units, ...")
    parser.add_argument("--seconds", type=float, default=0.5, help="for each timing")
    options = parse(parser, arguments, quick="one tiny shape")
    if options.quick:
        options.shapes, options.seconds = "2x8x4", 0.01
    for shape in shape_list(options.shapes):
        rows = benchmark(shape, options.seconds)
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
