"""Two tasks that need a long memory, for a QRNN with two kinds of bias and an LSTM.

    python examples/long_memory.py
    python examples/long_memory.py --task copy --models qrnn,chrono

Adding (Hochreiter and Schmidhuber 1997): each step has a number in [0, 1) and a mark.
Two steps are marked, one in each half. The target is the sum of their numbers. A model
that always answers 1 has a mean squared error of 1/6, the variance of that sum.

Copy memory (arXiv 1511.06464, section 4.1): a sequence has ten symbols out of eight,
`length` blanks, a sign to begin, and nine blanks. In the last ten steps the model must
write the ten symbols. A guess is right once in eight times.

The QRNN is trained with biases of zero and with those of `ChronoBias`. Each model sees
the same batches. Each batch is drawn anew.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

try:
    import keras
    import numpy as np

    from keras_qrnn import QRNN
    from keras_qrnn._checks import integer
    from keras_qrnn._files import atomic_write
    from keras_qrnn.initializers import ChronoBias
    from keras_qrnn.ops.equations import GATES
    from keras_qrnn.training.command_line import (
        Parser,
        add_options,
        given_options,
        run_command,
    )
    from keras_qrnn.training.environment import environment
    from keras_qrnn.training.options import (
        Check,
        check_each,
        choice,
        count,
        count_or_zero,
        option,
        path,
        positive,
    )
    from keras_qrnn.training.plots import pyplot, save_figure
    from keras_qrnn.training.run_directory import refuse_to_replace
except KeyboardInterrupt:  # the imports take seconds
    sys.exit(130)

TEST_SEQUENCES = 1000
MODELS = {"qrnn": "QRNN", "chrono": "QRNN, ChronoBias", "lstm": "LSTM"}
SYMBOLS = 8  # 1 to 8; 0 is the blank, 9 the sign to begin
COPIED = 10  # symbols in a sequence of copy memory


def up_to(most: int) -> Check:
    """The check of an option that is a number of things, `most` at the most."""
    return lambda name, value: integer(name, value, 1, most, "Option")


def some_models(name: str, value: str) -> str:
    """The check of an option that names models, separated by commas."""
    given = value.split(",")
    if not set(given) <= set(MODELS) or len(set(given)) < len(given):
        raise ValueError(
            f"Option `{name}` must be some of {','.join(MODELS)}. "
            f"Received: {name}={value!r}"
        )
    return value


@dataclass(frozen=True)
class Options:
    """The options of a run.

    Raises:
        ValueError: if a value is out of its range.
    """

    task: str = option("adding", "adding or copy", choice("adding", "copy"))
    models: str | None = option(
        None,
        "models to train, separated by commas (qrnn,chrono,lstm; on PyTorch "
        "qrnn,chrono, because Keras's LSTM is a slow loop there)",
        some_models,
    )
    length: int | None = option(
        None, "steps of adding (200), blanks of copy (30)", up_to(10_000)
    )
    units: int = option(64, "units of each layer", up_to(4096))
    layers: int = option(2, "number of layers", up_to(32))
    window: int = option(2, "window of the QRNN's convolution", up_to(256))
    pooling: str = option("fo", "f, fo or ifo", choice(*GATES))
    max_length: int | None = option(
        None,
        "longest memory of ChronoBias, in steps, if not that of the sequences",
        lambda name, value: integer(name, value, 3, 1_000_000, "Option"),
    )
    epochs: int = option(10, "epochs to train", count)
    steps: int | None = option(
        None, "batches of an epoch (adding 100, copy 300)", count
    )
    batch_size: int = option(32, "sequences of a batch", up_to(4096))
    learning_rate: float = option(0.003, "rate of Adam", positive)
    seed: int = option(0, "seed of weights and data", count_or_zero)

    def __post_init__(self) -> None:
        check_each(self)
        slow = keras.config.backend() == "torch"
        defaults = {
            "length": TASKS[self.task].length,
            "steps": TASKS[self.task].steps,
            "models": "qrnn,chrono" if slow else ",".join(MODELS),
        }
        for name, default in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        if self.task == "adding" and self.length < 2:
            raise ValueError(
                "Option `length` must be at least 2 for the task adding, which marks "
                f"two steps. Received: length={self.length}"
            )


def adding(count: int, length: int, rng: np.random.Generator) -> tuple:
    """Sequences `(count, length, 2)` of numbers and marks, and sums `(count, 1)`."""
    numbers = rng.uniform(size=(count, length))
    half = length // 2
    marked = np.stack(
        [rng.integers(0, half, count), rng.integers(half, length, count)], axis=1
    )
    marks = np.zeros((count, length))
    np.put_along_axis(marks, marked, 1.0, axis=1)
    sums = np.take_along_axis(numbers, marked, axis=1).sum(axis=1, keepdims=True)
    x = np.stack([numbers, marks], axis=2)
    return x.astype("float32"), sums.astype("float32")


def copy_memory(count: int, length: int, rng: np.random.Generator) -> tuple:
    """One-hot sequences `(count, length + 20, 10)`, targets `(count, length + 20)`."""
    symbols = rng.integers(1, SYMBOLS + 1, (count, COPIED))
    x = np.zeros((count, length + 2 * COPIED), "int32")
    y = np.zeros_like(x)
    x[:, :COPIED], x[:, -COPIED], y[:, -COPIED:] = symbols, SYMBOLS + 1, symbols
    return np.eye(SYMBOLS + 2, dtype="float32")[x], y


class Batches(keras.utils.PyDataset):
    """The batches of an epoch. No two are alike; each model gets the same ones."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.options = options
        self.epoch = 0

    def __len__(self) -> int:
        return self.options.steps

    def __getitem__(self, index: int) -> tuple:
        options = self.options
        rng = np.random.default_rng([options.seed, 1, self.epoch, index])
        return TASKS[options.task].draw(options.batch_size, options.length, rng)

    def on_epoch_end(self) -> None:
        self.epoch += 1


@dataclass(frozen=True)
class Task:
    """What a task is made of.

    Attributes:
        draw: a function from a number of sequences, a length and a random generator to
            inputs and targets.
        outputs: outputs of the model at each step that it answers.
        at_each_step: whether it answers at each step, or after the last one only.
        loss: the loss, as `compile` takes it.
        measured: what is measured on sequences that were not trained on.
        measure: a function from outputs and targets to that number.
        chance: that number for a model that remembers nothing.
        length: the default of the option.
        steps: the default of the option.
    """

    draw: Callable[..., tuple]
    outputs: int
    at_each_step: bool
    loss: str | keras.losses.Loss
    measured: str
    measure: Callable[[np.ndarray, np.ndarray], float]
    chance: float
    length: int
    steps: int


TASKS = {
    "adding": Task(
        draw=adding,
        outputs=1,
        at_each_step=False,
        loss="mse",
        measured="mean squared error",
        measure=lambda outputs, targets: np.mean((outputs - targets) ** 2),
        chance=1 / 6,
        length=200,
        steps=100,
    ),
    "copy": Task(
        draw=copy_memory,
        outputs=SYMBOLS + 2,
        at_each_step=True,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        measured="accuracy over the ten symbols",
        measure=lambda outputs, targets: np.mean(
            (outputs.argmax(-1) == targets)[:, -COPIED:]
        ),
        chance=1 / SYMBOLS,
        length=30,
        steps=300,
    ),
}


def build(name: str, options: Options, input_shape: tuple[int, int]) -> keras.Model:
    """A compiled model. `name` is a key of `MODELS`."""
    task = TASKS[options.task]
    keras.utils.set_random_seed(options.seed)
    model = keras.Sequential([keras.Input((None, input_shape[1]))])
    for number in range(options.layers):
        each_step = task.at_each_step or number < options.layers - 1
        if name == "lstm":
            layer = keras.layers.LSTM(options.units, return_sequences=each_step)
        else:
            bias = "zeros"
            if name == "chrono":
                # A seed for each layer: no two have the same biases.
                bias = ChronoBias(
                    options.max_length or max(3, input_shape[0]),
                    seed=options.seed + number,
                )
            layer = QRNN(
                options.units, options.window, options.pooling,
                bias_initializer=bias, return_sequences=each_step,
            )  # fmt: skip
        model.add(layer)
    model.add(keras.layers.Dense(task.outputs))
    model.compile(keras.optimizers.Adam(options.learning_rate, clipnorm=1.0), task.loss)
    return model


def trained(name: str, options: Options, test: tuple, verbose: int) -> dict:
    """Trains a model. Returns its losses by epoch, its result and its seconds."""
    task = TASKS[options.task]
    model = build(name, options, test[0].shape[1:])
    if verbose:
        print(f"\n{MODELS[name]}: {model.count_params():,} weights", flush=True)
    start = time.perf_counter()
    history = model.fit(
        Batches(options), epochs=options.epochs, shuffle=False, verbose=verbose
    )
    seconds = time.perf_counter() - start
    outputs = model.predict(test[0], batch_size=100, verbose=0)
    return {
        "loss": history.history["loss"],
        "weights": model.count_params(),
        "result": float(task.measure(outputs, test[1])),
        "seconds": seconds,
    }


def plot(file: Path, options: Options, runs: dict[str, dict]) -> None:
    """Draws the mean loss of each epoch over the steps of training."""
    figure, axis = pyplot().subplots(figsize=(7, 4), layout="constrained")
    steps = options.steps * np.arange(1, options.epochs + 1)
    for name, run in runs.items():
        axis.plot(steps, run["loss"], ".-", label=MODELS[name])
    axis.axhline(chance_loss(options), color="gray", linestyle=":", label="chance")
    axis.set_yscale("log")
    axis.set_xlabel("steps")
    axis.set_ylabel("loss")
    axis.set_title(f"{options.task}, length {options.length}")
    axis.grid(alpha=0.3)
    axis.legend()
    save_figure(figure, file)


def chance_loss(options: Options) -> float:
    """The loss of a model that remembers nothing."""
    if options.task == "adding":
        return TASKS["adding"].chance
    return COPIED * float(np.log(SYMBOLS)) / (options.length + 2 * COPIED)


def parser() -> argparse.ArgumentParser:
    parser = Parser(
        "long_memory.py",
        description="The adding problem and copy memory, for QRNN and LSTM.",
    )
    add_options(parser, Options)
    parser.add_argument(
        "--save_path", help="where the results go (default: long_memory-TASK_LENGTH)"
    )
    parser.add_argument(
        "--verbose", type=int, choices=(0, 1, 2), default=1,
        help="0: print the results only; 1: a progress bar; 2: a line for each epoch "
        "(default 1)",
    )  # fmt: skip
    return parser


def run(arguments: argparse.Namespace) -> None:
    options = Options(**given_options(arguments, Options))
    directory = Path(f"long_memory-{options.task}_{options.length}")
    if arguments.save_path is not None:
        directory = Path(path("save_path", arguments.save_path))
    refuse_to_replace("save_path", directory, ["results.json", "loss.png"])
    pyplot()  # a missing matplotlib is said before the training
    task = TASKS[options.task]
    rng = np.random.default_rng([options.seed, 2])
    test = task.draw(TEST_SEQUENCES, options.length, rng)
    runs = {
        name: trained(name, options, test, arguments.verbose)
        for name in options.models.split(",")
    }

    record = {"options": asdict(options), "chance": task.chance, "runs": runs}
    with atomic_write(directory / "results.json") as temporary:
        text = json.dumps(record | environment(), indent=1)
        temporary.write_text(text + "\n", "utf-8")
    plot(directory / "loss.png", options, runs)
    print(f"\n{task.measured} on {TEST_SEQUENCES:,} new sequences:")
    for name, each in runs.items():
        print(f"{MODELS[name]:<18} {each['result']:.4f}   {each['seconds']:.0f} s")
    print(f"{'chance':<18} {task.chance:.4f}")
    print(f"{directory / 'loss.png'} shows the losses.")


def main(argv: list[str] | None = None) -> int:
    return run_command("long_memory.py", lambda: run(parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
