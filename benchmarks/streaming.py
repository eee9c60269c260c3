"""Times one step a call, states carried, of a QRNN against an LSTM of its size.

    KERAS_BACKEND=jax python benchmarks/streaming.py [--units 64,320] [--batches 1,8]

Three ways to call a layer: `eager` (not on JAX, where an LSTM compiles anew at every
eager call), `compiled` (by `jax.jit` and `tf.function`; not on PyTorch), and `predict`
(`Model.predict_on_batch`). The states that a call returns go into the next. The two
layers take turns, and the ratio is that of one run.
"""

from collections.abc import Callable

import keras
import numpy as np
from _timing import (
    BACKEND,
    forward,
    int_list,
    measure,
    merge_rows,
    parse,
    tensor,
    zero_or_more,
)

from keras_qrnn import QRNN
from keras_qrnn.training.command_line import Parser
from keras_qrnn.training.environment import environment

KEY = ("batch", "units", "mode", "name")
NAMES = ("QRNN", "keras LSTM")


def model_of(name: str, batch: int, units: int) -> keras.Model:
    """A model from a step and the states to the output and the next states."""
    layer_class = QRNN if name == "QRNN" else keras.layers.LSTM
    layer = layer_class(units, return_sequences=True, return_state=True)
    states = [(batch, units), (batch, 1, units) if name == "QRNN" else (batch, units)]
    inputs = keras.Input(batch_shape=(batch, 1, units))
    states = [keras.Input(batch_shape=shape) for shape in states]
    return keras.Model([inputs, *states], layer(inputs, initial_state=states))


def calls_of(model: keras.Model, steps: int) -> dict[str, Callable]:
    """For each way a function that reads `steps` steps."""
    layer = model.layers[-1]
    arrays = [np.zeros(each.shape, "float32") for each in model.inputs]
    tensors = [keras.ops.stop_gradient(tensor(array)) for array in arrays]

    def step(x: keras.KerasTensor, *states: keras.KerasTensor) -> tuple:
        return tuple(layer(x, initial_state=list(states)))

    def read(call: Callable, first: list) -> Callable:
        def run() -> keras.KerasTensor:
            x, *states = first
            for _ in range(steps):
                output, *states = call(x, *states)
            return output

        return run

    calls = {}
    if BACKEND != "jax":
        eager = forward(step) if BACKEND == "torch" else step
        calls["eager"] = read(eager, tensors)
    if BACKEND != "torch":
        calls["compiled"] = read(forward(step), tensors)
    predict = read(lambda *given: model.predict_on_batch(list(given)), arrays)
    return calls | {"predict": predict}


def benchmark(batch: int, units: int, steps: int, seconds: float) -> list[dict]:
    calls = {name: calls_of(model_of(name, batch, units), steps) for name in NAMES}
    rows = []
    for mode in calls["QRNN"]:
        spread = measure({name: calls[name][mode] for name in NAMES}, seconds)
        for name in NAMES:
            runs = spread[name].pop("runs")
            times = {field: 1e6 * t / steps for field, t in spread[name].items()}
            size = {"batch": batch, "units": units, "mode": mode, "name": name}
            rows.append(size | times | {"runs": runs} | environment())
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--units", type=int_list, default="64,320")
    parser.add_argument("--batches", type=int_list, default="1")
    parser.add_argument(
        "--seconds", type=zero_or_more, default=1.0, help="for each timing"
    )
    options = parse(parser, arguments, quick="one tiny layer")
    steps = 2 if options.quick else 50  # of one timing
    if options.quick:
        options.units, options.batches, options.seconds = [4], [1], 0.01
    for units in options.units:
        for batch in options.batches:
            rows = benchmark(batch, units, steps, options.seconds)
            merge_rows(options.results / "streaming.csv", rows, KEY)
            for qrnn, lstm in zip(rows[::2], rows[1::2], strict=True):
                ratio = qrnn["median"] / lstm["median"]
                print(
                    f"{BACKEND} {batch} x {units} {qrnn['mode']:9}"
                    f"QRNN {qrnn['median']:7.0f} us a step, LSTM {lstm['median']:7.0f}"
                    f", ratio {ratio:.2f} (in {qrnn['runs']} runs)",
                    flush=True,
                )


if __name__ == "__main__":
    main()
