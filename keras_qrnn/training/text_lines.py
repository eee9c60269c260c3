"""Shared by the programs that give an answer to each line of a text."""

import argparse
import contextlib
import queue
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from keras_qrnn.training.options import count
from keras_qrnn.training.options import path as path_option


def add_arguments(
    parser: argparse.ArgumentParser, program: str, lines: str, batch_size: int
) -> None:
    """Adds what each of these programs takes: a run, a text and a batch size.

    Args:
        parser: of the program.
        program: name of the program that writes such runs.
        lines: what the lines of the text are: "sentences".
        batch_size: the default.
    """
    parser.add_argument(
        "--load_path", help=f"directory that {program} wrote (required)"
    )
    parser.add_argument(
        "--input", help=f"file of {lines}, one in each line (default: standard input)"
    )
    parser.add_argument(
        "--batch_size", type=int, default=batch_size,
        help=f"{lines} computed at the same time (default {batch_size})",
    )  # fmt: skip


def check_arguments(arguments: argparse.Namespace) -> None:
    """Raises a ValueError if `--batch_size` or `--input` cannot be used."""
    count("batch_size", arguments.batch_size)
    if arguments.input is not None:
        path_option("input", arguments.input)


@contextlib.contextmanager
def open_lines(file: str | None) -> Iterator[Iterable[str]]:
    """The lines of a file, or of standard input if `file` is None, as UTF-8.

    Raises:
        ValueError: if the file cannot be opened.
    """
    if file is None:
        if hasattr(sys.stdin, "reconfigure"):
            sys.stdin.reconfigure(encoding="utf-8-sig")
        yield sys.stdin
        return
    with contextlib.ExitStack() as stack:
        try:
            lines = stack.enter_context(Path(file).open(encoding="utf-8-sig"))
        except OSError as error:
            raise ValueError(
                "Option `input` must be a file that can be read. "
                f"Received: {file} ({error.strerror})"
            ) from error
        yield lines


def answered(
    lines: Iterable[str],
    most: int,
    answer: Callable[[list[str]], Iterable[str]],
    warn: Callable[[int, str], None],
) -> Iterator[tuple[int, str]]:
    """Prints the answer to each line, in order, as the lines come.

    Args:
        lines: of any text. Blanks at their ends are removed.
        most: the largest number of lines that are answered at the same time.
        answer: gives the answers of some lines.
        warn: takes the number of a line, from 1, and the line, before it is answered.

    Yields:
        The number of each line and the line, after the answer was printed.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8")
    first = 1
    for batch in batches_of(lines, most):
        texts = [line.strip() for line in batch]
        for number, text in enumerate(texts, first):
            warn(number, text)
        for found in answer(texts):
            print(found, flush=True)
        yield from enumerate(texts, first)
        first += len(texts)


def batches_of(lines: Iterable[str], most: int) -> Iterator[list[str]]:
    """The lines in lists of at most `most`. A list holds the lines that have arrived.

    So lines that a user types are answered one by one, and a file in batches.
    """
    come: queue.Queue = queue.Queue(maxsize=most)
    end = object()

    def read() -> None:
        last: object = end
        try:
            for line in lines:
                come.put(line)
        except UnicodeDecodeError as error:
            name = getattr(lines, "name", "The input")
            last = ValueError(f"{name} is not UTF-8 text: {error}")
        except (OSError, ValueError) as error:  # such as a closed file
            last = error
        come.put(last)

    threading.Thread(target=read, daemon=True).start()
    while True:
        batch = [come.get()]
        while len(batch) < most and not come.empty() and isinstance(batch[-1], str):
            batch.append(come.get())
        texts = [line for line in batch if isinstance(line, str)]
        if texts:
            yield texts
        if isinstance(batch[-1], Exception):
            raise batch[-1]
        if batch[-1] is end:
            return
