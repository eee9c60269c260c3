"""What the command lines share: options, a configuration file, errors in one line."""

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

from keras_qrnn.training.options import named_fields, type_of, with_current_names


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
        values = json.loads(Path(path).read_text("utf-8"))
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
        on_interrupt: the message after Ctrl-C, if the `KeyboardInterrupt` has none.

    Returns:
        The exit code: 0, 2 after an error of use, 130 after Ctrl-C.
    """
    reported: tuple[type[Exception], ...] = (
        ValueError,
        OSError,
        ImportError,
        MemoryError,
        *errors,
    )
    try:
        command()
    except KeyboardInterrupt as interrupt:
        advice = str(interrupt) or on_interrupt
        print(one_line(f"{name}: interrupted. {advice}"), file=sys.stderr)
        return 130
    except reported as error:
        message = str(error) or type(error).__name__
        print(f"{name}: error: {one_line(message)}", file=sys.stderr)
        return 2
    return 0


def one_line(text: str) -> str:
    """`text` with each line break and run of blanks as one blank."""
    return " ".join(text.split())
