"""Shared by the programs: their options, configuration files, errors in one line."""

import argparse
import functools
import json
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from keras_qrnn._files import atomic_write
from keras_qrnn._processes import end_if_joined, is_first
from keras_qrnn.distribution import evaluation_distribution, scope_of
from keras_qrnn.training.data_options import DataOptions
from keras_qrnn.training.environment import environment
from keras_qrnn.training.experiment import (
    Experiment,
    has_diverged,
    join,
    train_experiment,
)
from keras_qrnn.training.options import (
    RunOptions,
    named_fields,
    type_of,
    with_current_names,
)
from keras_qrnn.training.options import path as path_option
from keras_qrnn.training.run_directory import RunDirectory

Options = TypeVar("Options", bound=RunOptions)
Data = TypeVar("Data", bound=DataOptions)
NOTES = "_keras_qrnn_notes"  # the attribute of an error that `add_note` sets


class Parser(argparse.ArgumentParser):
    """An argument parser that reports an error in one line and exits with 2."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **({"allow_abbrev": False} | kwargs))

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {one_line(message)}\n")


def add_flag(parser: Any, name: str, default: Any, help: str) -> None:
    """Adds `--name` and `--noname`, which set `name` to True and False."""
    parser.add_argument(f"--{name}", action="store_true", default=default, help=help)
    parser.add_argument(
        f"--no{name}",
        dest=name,
        action="store_false",
        default=default,
        help=f"not --{name}",
    )


def add_options(parser: Any, options: Any, names: Iterable[str] | None = None) -> None:
    """Adds an argument for each option of a dataclass, under all its names.

    The namespace holds only options that the command line gives. Presets and
    configuration files decide the others.

    Args:
        parser: an `argparse` parser, or a group of one.
        options: the dataclass, or an instance whose values are shown as defaults.
        names: which of its options. Defaults to all.
    """
    all_fields = named_fields(options)
    for name in all_fields if names is None else names:
        each = all_fields[name]
        default = getattr(options, name, each.default)
        help = each.metadata["help"]
        if default is not None:
            help = f"{help} (default {default})"
        if isinstance(default, bool):
            add_flag(parser, name, argparse.SUPPRESS, help)
            continue
        spellings = [f"--{each}" for each in (name, *each.metadata["older_names"])]
        parser.add_argument(
            *spellings,
            dest=name,
            type=type_of(options, name),
            default=argparse.SUPPRESS,
            help=help,
            metavar=name.upper(),
        )


def given_options(arguments: argparse.Namespace, options: Any) -> dict[str, Any]:
    """The options of a dataclass that were given on the command line."""
    given = vars(arguments)
    return {name: given[name] for name in named_fields(options) if name in given}


def data_from(arguments: argparse.Namespace, kind: type[Data]) -> Data:
    """The options of the data that were given on the command line."""
    return kind(**given_options(arguments, kind))


def read_config(path: str, options: Any) -> dict[str, Any]:
    """The options in a JSON file, by their current names.

    Args:
        path: a file that holds an object with values of options.
        options: the dataclass.

    Raises:
        ValueError: if the file cannot be read, is not such an object, or a value is
            of another type than its option.
    """
    try:
        values = json.loads(Path(path).read_text("utf-8-sig"))
    except OSError as error:
        raise ValueError(f"Option `config` cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"Option `config`: {path} is not JSON: {error}") from error
    names = named_fields(options)
    if isinstance(values, dict):
        try:
            values = with_current_names(values, options)
        except ValueError as error:
            raise ValueError(f"Option `config`: in {path} {error}") from error
    if not isinstance(values, dict) or not names.keys() >= values.keys():
        unknown = (
            sorted(values.keys() - names.keys()) if isinstance(values, dict) else values
        )
        raise ValueError(
            "Option `config`: expected a JSON object with values of "
            f"{', '.join(sorted(names))}. Received: {unknown}"
        )
    for name, value in values.items():
        expected = type_of(options, name)
        fitting = (int, float) if expected is float else (expected,)
        is_default = value is None and names[name].default is None
        if type(value) not in fitting and not is_default:
            raise ValueError(
                f"Option `config`: {name} must be of type {expected.__name__}. "
                f"Received: {name}={value!r}"
            )
        if value is not None:
            names[name].metadata["check"](name, value)
    return values


def add_run_arguments(parser: Any, default_path: str, test: str) -> None:
    """Adds what every training program takes: the run directory and what to do in it.

    Args:
        parser: an `argparse` parser.
        default_path: the default of `--save_path`, in words.
        test: what `--test` evaluates.
    """
    parser.add_argument("--config", help="JSON with values of the options above")
    parser.add_argument(
        "--save_path", help=f"output directory (default: {default_path})"
    )
    add_flag(parser, "train", True, "train, or only evaluate what is in save_path")
    add_flag(parser, "test", True, f"evaluate on {test} at the end")
    parser.add_argument("--resume", action="store_true", help="go on with a killed run")
    parser.add_argument(
        "--verbose", type=int, choices=(0, 1, 2), default=1,
        help="0: print nothing while training; 1: a progress bar; 2: a line for each "
        "epoch (default 1)",
    )  # fmt: skip


def chosen_options(
    arguments: argparse.Namespace,
    kind: type[Options],
    preset: Mapping[str, Any],
    **chosen: Any,
) -> Options:
    """The options of a run. Later ones override earlier ones.

    Args:
        arguments: of the command line. Its options come last, after `--config`.
        kind: the dataclass of options.
        preset: options that come first.
        **chosen: options that come after `--config`.
    """
    values = {}
    if arguments.config is not None:
        path_option("config", arguments.config)
        values = read_config(arguments.config, kind)
    given = given_options(arguments, kind)
    return kind(**{**preset, **values, **chosen, **given})


def save_path_of(
    arguments: argparse.Namespace, prefix: str, parts: Iterable[str | None]
) -> Path:
    """`--save_path`, or a directory whose name is `prefix` and `parts`.

    Only they change the name. Commands that differ in other options have the same
    directory: give one of them a `--save_path`.

    Args:
        arguments: of the command line.
        prefix: how the name begins.
        parts: what follows. Those that are None are left out; equal ones count once.
    """
    if arguments.save_path is not None:
        return Path(path_option("save_path", arguments.save_path))
    names = dict.fromkeys(part for part in parts if part is not None)
    return Path(f"{prefix}_{'_'.join(names) or 'model'}")


def load_path_of(arguments: argparse.Namespace, program: str) -> Path:
    """`--load_path` of a program that uses a trained model.

    Args:
        arguments: of the command line.
        program: name of the program that writes such runs.

    Raises:
        ValueError: if it is not given. The message names the directories in the working
            directory that hold a trained model.
    """
    if arguments.load_path is not None:
        return Path(path_option("load_path", arguments.load_path))
    runs = sorted(
        file.parent.name
        for file in Path().glob("*/model.keras")
        if RunDirectory(file.parent).vocabulary.is_file()
    )
    raise ValueError(
        f"Option `load_path` must be given: a directory that {program} wrote. "
        f"Runs of any task in the working directory: {', '.join(runs) or 'none'}"
    )


def train_and_evaluate(
    program: str,
    arguments: argparse.Namespace,
    argv: Sequence[str],
    experiment: Experiment,
    path: Path,
    evaluate: Callable[[Callable[[str], None]], dict[str, Any]],
) -> None:
    """Trains if `--train` says so, evaluates, and writes `run.json`.

    Args:
        program: the program, as in `examples/train_lm.py`.
        arguments: of the command line: see `add_run_arguments`.
        argv: the command line.
        experiment: what to train.
        path: the run directory.
        evaluate: evaluates the best model. It takes a function that prints a line, and
            returns what `run.json` shall hold.

    Raises:
        ValueError: if the training diverges in its first epoch.
    """
    if arguments.train:
        history = train_experiment(
            experiment, path, resume=arguments.resume, verbose=arguments.verbose
        )
        if has_diverged(experiment, history):
            advice = experiment.why_diverged()
            raise ValueError(f"Training diverged in its first epoch. {advice}")
    found = evaluate_by_all(experiment.options, evaluate)
    if arguments.train and is_first():
        revision = experiment.revision
        record = {
            "command": shlex.join([program, *argv]),
            "options": asdict(experiment.options) | experiment.sizes,
            **({} if revision is None else {"revision": revision}),
            **found,
            **environment(),
        }
        with atomic_write(RunDirectory(path).record) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n", "utf-8")


def evaluate_by_all(
    options: RunOptions, evaluate: Callable[[Callable[[str], None]], dict[str, Any]]
) -> dict[str, Any]:
    """What `evaluate` returns. All processes evaluate: they end at the same time.

    Args:
        options: of the run.
        evaluate: evaluates the best model. It takes a function that prints a line, in
            process 0 alone.

    Raises:
        ValueError: if the backend has no such `distribution`.
    """
    join(options)
    say = functools.partial(print, flush=True) if is_first() else _say_nothing
    with scope_of(evaluation_distribution(options.distribution)):
        return evaluate(say)


def _say_nothing(line: str) -> None:
    """Takes the place of `print` in all processes but the first."""


def run_training_command(
    program: str,
    parser: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace, list[str]], None],
    argv: list[str] | None,
) -> int:
    """Parses the command line and runs a training program.

    Returns:
        The exit code: see `run_command`.
    """
    argv = sys.argv[1:] if argv is None else argv
    arguments = parser.parse_args(argv)
    print_any_character()
    return run_command(
        program,
        lambda: run(arguments, argv),
        on_interrupt="Start it again with --resume and it goes on.",
    )


def print_any_character() -> None:
    """Has `print` escape what the terminal does not have, such as a letter of a path.

    For a program that prints messages, and writes its results to files.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")


def run_command(
    name: str,
    command: Callable[[], None],
    errors: tuple[type[Exception], ...] = (),
    on_interrupt: str = "",
) -> int:
    """Runs a command and reports what ends it in one line on stderr.

    Args:
        name: name of the command, for the message.
        command: the work.
        errors: further exceptions that are errors of use and not of the program.
        on_interrupt: what the user can do next, where the command was interrupted and
            its `KeyboardInterrupt` does not say it.

    Returns:
        The exit code: 0, 2 after an error of use, 130 after Ctrl-C. 1 if the program
        that reads the output has ended, as in `| head`. One of several processes ends
        here if it is not 0.
    """
    try:
        code = _run(name, command, errors, on_interrupt)
    except Exception:
        end_if_joined(1, traceback.format_exc())
        raise
    if code:
        end_if_joined(code)
    return code


def _run(
    name: str,
    command: Callable[[], None],
    errors: tuple[type[Exception], ...],
    on_interrupt: str,
) -> int:
    """Runs the command of `run_command`. Returns the exit code."""
    reported: tuple[type[Exception], ...] = (
        ValueError,
        OSError,
        ImportError,
        MemoryError,
        *errors,
    )
    try:
        command()
        print(end="", flush=True)  # here, where an error is reported, not at exit
    except KeyboardInterrupt as interrupt:
        advice = str(interrupt) or on_interrupt
        print(one_line(f"{name}: interrupted. {advice}"), file=sys.stderr)
        return 130
    except BrokenPipeError:
        _print_if_read("", sys.stdout)
        message = f"{name}: stopped: the program that reads its output has ended. "
        _print_if_read(one_line(message + on_interrupt) + "\n", sys.stderr)
        return 1
    except reported as error:
        message = str(error) or type(error).__name__
        message += "".join(getattr(error, NOTES, []))
        print(f"{name}: error: {one_line(message)}", file=sys.stderr)
        return 2
    return 0


def _print_if_read(text: str, stream: Any) -> None:
    """Prints, or drops what a stream holds that nobody reads any more.

    Python would report at exit that such a stream cannot be flushed.
    """
    try:
        print(text, end="", file=stream, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def add_note(error: Exception, note: str) -> None:
    """Has `run_command` print `note` behind the error's message.

    `Exception.add_note` has the notes of others as well: JAX adds one of its own.
    """
    setattr(error, NOTES, [*getattr(error, NOTES, []), f". {note}"])


def one_line(text: str) -> str:
    """`text` with each line break and run of blanks as one blank."""
    return " ".join(text.split())
