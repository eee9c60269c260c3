"""Files that are never half-written, and files that may be damaged."""

import contextlib
import csv
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

UNFINISHED = ".unfinished-"  # in the names of temporary files


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path that takes the place of `path` when all went well.

    Whatever happens in between, `path` is either as it was or complete. The
    temporary file lies in the same directory (a rename is atomic only within
    one file system) and keeps the suffix, which writers such as Keras check.

    Args:
        path: the file to write. Its directory is made if there is none.

    Raises:
        OSError: if the directory cannot be made or written. It names `path`, also
            where the system gives no name: a full disk.
    """
    path = Path(path)
    try:
        with _temporary(path) as temporary:
            yield temporary
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(
        dir=path.parent,
        prefix=f".{path.name}{UNFINISHED}",
        suffix="".join(path.suffixes),
    )
    temporary = Path(name)
    try:
        # mkstemp's private mode is not what an ordinary file would have.
        mask = os.umask(0)
        os.umask(mask)
        os.fchmod(handle, 0o666 & ~mask)
        os.close(handle)
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def reading(path: str | os.PathLike, expected: str) -> Iterator[None]:
    """Makes one error of whatever a damaged or foreign file makes its reader raise.

    Args:
        path: the file that is read.
        expected: what it should be: "a whole checkpoint".

    Raises:
        ValueError: in place of any error but that the file is missing or cannot be
            opened. It names the file.
    """
    try:
        yield
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:
        raise ValueError(
            f"{path} is not {expected}. Received: {type(error).__name__}: {error}"
        ) from error


def write_csv(path: Path, rows: list[dict]) -> None:
    """One line for each row, the columns of the first; never half-written."""
    with (
        atomic_write(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def remove_leftovers(directory: Path) -> None:
    """Removes what killed processes have left half-written in `directory`.

    For directories that one process at a time writes to.
    """
    for file in directory.glob(f".*{UNFINISHED}*"):
        file.unlink()
