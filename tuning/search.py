"""Searches for a good QRNN language model with Keras Tuner.

    python tuning/search.py --dataset sample
    python tuning/search.py --data_dir ptb --tuner bayesian --workers 2
    python tuning/search.py --units 256,640 --window 1-4 --zoneout 0.0-0.5 --layers 2

A hyperparameter is given as a value, as values separated by commas, or as a range. A
range includes both ends. A search can be killed at any moment: the same command resumes
it. docs/search.md has the details.
"""

import argparse
import os
import shlex
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

try:
    from keras_qrnn.training import TrainingOptions
    from keras_qrnn.training.command_line import Parser, add_options, run_command
    from keras_qrnn.training.options import count, path
    from keras_qrnn.training.run_directory import held

    try:
        import keras_tuner
    except ImportError as error:  # it imports six, on which it does not depend
        sys.exit(
            f"search.py: error: the search needs Keras Tuner, and {error}: "
            "pip install '.[tuning]' in a checkout of keras-qrnn"
        )

    from keras_tuner.errors import FatalError

    from search_directory import RECORD, check_record, prepare, refuse_foreign
    from search_oracles import TUNERS, make_oracle
    from search_results import best_table, completed, tidy_trials, write_results
    from search_space import Dimension, Space
    from search_task import (
        DEFAULTS,
        EPOCHS,
        FIXED,
        HYPERPARAMETERS,
        MAX_TRIALS,
        SCRIPT,
        LanguageModelTask,
        trial_options,
    )
    from search_tuner import TrialTuner
    from search_workers import (
        MAX_WORKERS,
        Chief,
        ask_chief_directly,
        end_with_parent,
        role,
        run_workers,
    )
except KeyboardInterrupt:  # the imports take seconds
    sys.exit(130)


def parser() -> Parser:
    parser = Parser(
        prog="search.py",
        description="Searches for a good QRNN language model with Keras Tuner. A "
        "hyperparameter is given as a value, as values separated by commas, or as a "
        "range with both its ends: 256, 256,640 or 256-640.",
    )
    space = parser.add_argument_group("the space")
    for name, hyperparameter in HYPERPARAMETERS.items():
        scale = ", on a logarithmic scale" if hyperparameter.log else ""
        default = ", ".join(f"{v[name]} for {k}" for k, v in DEFAULTS.items())
        space.add_argument(
            f"--{name}", help=f"{hyperparameter.help}{scale} (default {default})"
        )

    def default(values: dict[str, int]) -> str:
        return ", ".join(f"{value} for {name}" for name, value in values.items())

    search = parser.add_argument_group("the search")
    search.add_argument("--tuner", choices=TUNERS, default="random")
    search.add_argument(
        "--max_trials",
        type=int,
        help=f"trials at most (default {default(MAX_TRIALS)}; with hyperband and grid "
        "as many as there are)",
    )
    search.add_argument(
        "--epochs",
        type=int,
        help="epochs of a trial, with hyperband of the longest (default "
        f"{default(EPOCHS)})",
    )
    search.add_argument(
        "--executions_per_trial", type=int, default=1, help="runs of which a trial is "
        "the mean, with different seeds (default 1)",
    )  # fmt: skip
    search.add_argument(
        "--workers", type=int, default=0, help="processes on this machine that run "
        "trials at the same time (default 0: this one)",
    )  # fmt: skip
    search.add_argument(
        "--save_path", default="lm-qrnn_search", help="directory of the search"
    )
    search.add_argument(
        "--overwrite", action="store_true", help="start anew, deleting what is there"
    )
    search.add_argument(
        "--verbose", type=int, choices=(0, 1, 2), default=2, help="0: print errors "
        "only; 1: also the trials; 2: also their epochs (default 2)",
    )  # fmt: skip
    search.add_argument("--launched", action="store_true", help=argparse.SUPPRESS)

    data = parser.add_argument_group("the data")
    data.add_argument("--dataset", choices=tuple(DEFAULTS), default="ptb")
    data.add_argument("--data_dir", help="directory with {train,valid,test}.txt")
    data.add_argument(
        "--max_tokens", type=int, help="N: train on the first N tokens, and on the "
        "rest of their last sentence (default all)",
    )  # fmt: skip

    training = parser.add_argument_group(f"the training, as in {SCRIPT}")
    add_options(training, TrainingOptions, FIXED)
    return parser


def check(arguments: argparse.Namespace) -> None:
    """Raises a ValueError for an option of the search that is out of its range."""
    for name in ("max_trials", "epochs", "executions_per_trial", "max_tokens"):
        value = getattr(arguments, name)
        if value is not None:
            count(name, value)
    if not 0 <= arguments.workers <= MAX_WORKERS:
        raise ValueError(
            f"Option `workers` must not be negative or above {MAX_WORKERS}. "
            f"Received: workers={arguments.workers}"
        )
    for name in ("save_path", "data_dir"):
        if getattr(arguments, name) is not None:
            path(name, getattr(arguments, name))


def check_role(part: str, arguments: argparse.Namespace) -> None:
    """Raises a ValueError for an option that does not go with the process's role."""
    if part != "single" and arguments.workers and not arguments.launched:
        raise ValueError(
            "Option `workers` starts a chief of its own: it does not go with the "
            "environment variables of Keras Tuner's chief and workers"
        )
    if part == "worker" and arguments.overwrite and not arguments.launched:
        raise ValueError("Option `overwrite` is for the chief, not for a worker")


def space_from(arguments: argparse.Namespace) -> Space:
    """The space of the command line."""
    space = {}
    for name, hyperparameter in HYPERPARAMETERS.items():
        text = getattr(arguments, name)
        default = DEFAULTS[arguments.dataset][name]
        space[name] = Dimension.parse(hyperparameter, default if text is None else text)
    return space


def options_from(arguments: argparse.Namespace) -> TrainingOptions:
    """The options of all trainings, without the hyperparameters."""
    given = {name: vars(arguments)[name] for name in FIXED if name in arguments}
    epochs = arguments.epochs or EPOCHS[arguments.dataset]
    return TrainingOptions(epochs=epochs, **given)


def largest(space: Space, options: TrainingOptions, executions: int) -> TrainingOptions:
    """The options of the largest model of a search, with its last seed.

    Raises:
        ValueError: if a trial could have options that do not go together.
    """
    options = replace(options, seed=options.seed + executions - 1)
    values = [{n: end(d.values) for n, d in space.items()} for end in (min, max)]
    _, found = (trial_options(options, each) for each in values)
    return found


def record(
    arguments: argparse.Namespace,
    space: Space,
    options: TrainingOptions,
    task: LanguageModelTask,
) -> dict:
    """The record of a search. Trials of searches with equal records are comparable."""
    # The space holds the hyperparameters. How often checkpoints are written may change.
    free = {"save_every", *HYPERPARAMETERS}
    fixed = {name: value for name, value in vars(options).items() if name not in free}
    return {
        **{name: str(dimension) for name, dimension in space.items()},
        "tuner": arguments.tuner,
        "executions_per_trial": arguments.executions_per_trial,
        **fixed,
        "data": task.fingerprint,
    }


def run(arguments: argparse.Namespace, argv: list[str]) -> None:
    """The search, in the role that this process has in it.

    Every option is checked before the data are loaded, and against the data before
    the directory is made.
    """
    check(arguments)
    part, directory = role(), Path(arguments.save_path).absolute()
    check_role(part, arguments)
    space = space_from(arguments)
    options = options_from(arguments)
    model = largest(space, options, arguments.executions_per_trial)
    max_trials = arguments.max_trials
    if max_trials is None and arguments.tuner not in ("hyperband", "grid"):
        max_trials = MAX_TRIALS[arguments.dataset]
    oracle = make_oracle(
        arguments.tuner, space, max_trials, options.epochs, options.seed
    )
    task = LanguageModelTask.load(
        arguments.dataset, arguments.data_dir, arguments.max_tokens, model
    )
    print(task.summary, flush=True)
    expected = record(arguments, space, options, task)

    def make_tuner() -> TrialTuner:
        return TrialTuner(
            oracle, directory, task.train, options,
            arguments.executions_per_trial, arguments.verbose,
        )  # fmt: skip

    if part == "worker":
        ask_chief_directly()
        tuner = make_tuner()
        tuner.oracle.get_space()  # waits for the chief
        if not (directory / RECORD).exists():
            raise FileNotFoundError(
                f"Option `save_path`: the chief's search is not in {directory}. All "
                "machines must share that directory"
            )
        check_record(directory / RECORD, expected)
        tuner.search()
        return
    refuse_foreign(directory)  # before the lock's file is made there
    with held(directory, "searched"):
        if prepare(directory, expected, arguments.overwrite):
            print(f"Goes on with the search in {directory}", flush=True)
        tuner = make_tuner()
        try:
            if part == "chief":
                serve(oracle)
            elif arguments.workers:
                command = [sys.executable, str(Path(__file__).absolute())]
                command += ["--launched", *argv]
                run_workers(oracle, arguments.workers, command, directory)
            else:
                tuner.search()
        except KeyboardInterrupt:
            rows = write_results(oracle, directory, options, task.save)
            raise KeyboardInterrupt(
                f"Trials that have ended: {len(rows)}. Start it again and it goes on."
            ) from None
        if oracle.failure:
            raise RuntimeError(str(oracle.failure))
        tidy_trials(oracle, directory)
        rows = write_results(oracle, directory, options, task.save)
    print_results(rows, directory, arguments)


def serve(oracle: keras_tuner.Oracle) -> None:
    """Serves the oracle to workers, where keras-tuner's variables say."""
    address = os.environ["KERASTUNER_ORACLE_IP"]
    port = os.environ["KERASTUNER_ORACLE_PORT"]
    with Chief(oracle, address, port) as chief:
        print(f"The chief waits for workers at {address}:{port}", flush=True)
        chief.wait()


def print_results(
    rows: list[dict], directory: Path, arguments: argparse.Namespace
) -> None:
    """Prints the best trials and how to go on from them.

    Raises:
        RuntimeError: if no trial came to an end.
    """
    ended = len(completed(rows))
    if not ended:
        raise RuntimeError(
            f"None of {len(rows)} trials came to an end; see {directory / 'trials.csv'}"
        )
    data = ["--dataset", arguments.dataset]
    if arguments.data_dir is not None:
        data = ["--data_dir", arguments.data_dir]
    train = ["python", SCRIPT, *data, "--config", str(directory / "best.json")]
    print(f"\n{ended} of {len(rows)} trials completed. The best:\n")
    print(best_table(rows))
    print(
        f"\nIn {directory}: trials.csv, best.json, best_model.keras, objective.png, "
        "hyperparameters.png, parallel.png\n"
        f"Train the best in full: {shlex.join(train)}\n"
        f"TensorBoard: {shlex.join(['tensorboard', '--logdir', str(directory)])}",
        flush=True,
    )


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    arguments = parser().parse_args(argv)
    if arguments.launched:
        end_with_parent()

    def command() -> None:
        if arguments.verbose:
            run(arguments, argv)
            return
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
            run(arguments, argv)

    return run_command(
        "search.py",
        command,
        (RuntimeError, FatalError),
        "Start it again and it goes on.",
    )


if __name__ == "__main__":
    sys.exit(main())
