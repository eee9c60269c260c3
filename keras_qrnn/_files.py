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
        OSError: if the directory cannot be made or written.
    """
    path = Path(path)
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
