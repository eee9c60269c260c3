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
    """Yields a temporary path, which is renamed to `path` at the end of the block.

    After an error or a kill, `path` is either unchanged or complete. The temporary file
    lies in the same directory, because a rename is atomic only within one file system.
    It has the same suffix, because writers such as Keras check it.

    Args:
        path: the file to write. Its directory is made if there is none.

    Raises:
        FileExistsError: if `path` is a directory or a device.
        OSError: if the directory cannot be made or written. It names `path`, also
            where the system gives no name: a full disk.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        # A rename would put a file in the place of a device such as /dev/null.
        what = "a directory" if path.is_dir() else "a device"
        raise FileExistsError(f"{path} must be a file. Received: {what}")
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
    """Turns the errors of reading a damaged or foreign file into a ValueError.

    Args:
        path: the file that is read.
        expected: the expected content, for the message: "a whole checkpoint".

    Raises:
        ValueError: instead of any other error, except that the file is missing or
            cannot be opened. It names the file.
        MemoryError: if the file needs more memory than there is. It names the file.
    """
    try:
        yield
    except (FileNotFoundError, PermissionError):
        raise
    except MemoryError as error:
        raise MemoryError(
            f"{path} needs more memory than there is, or is damaged. Received: {error}"
        ) from error
    except Exception as error:
        raise ValueError(
            f"{path} is not {expected}. Received: {type(error).__name__}: {error}"
        ) from error


def write_csv(path: Path, rows: list[dict]) -> None:
    """Writes a line for each row, with the first row's columns. Never half-written."""
    with (
        atomic_write(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def remove_leftovers(directory: Path) -> None:
    """Removes half-written files that killed processes left in `directory`.

    No other process may write to the directory at the same time.
    """
    for file in directory.glob(f".*{UNFINISHED}*"):
        file.unlink()
