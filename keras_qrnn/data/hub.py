"""Data sets from the Hugging Face hub."""

import http.client
import importlib.util
import json
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping, Sequence

TIMEOUT = 10  # seconds
Columns = Mapping[str, Mapping[str, list]]


def need_datasets(what: str) -> None:
    """Raises an ImportError if Hugging Face `datasets` is not installed.

    Args:
        what: the thing to load with it, for the message.
    """
    if importlib.util.find_spec("datasets") is None:
        raise ImportError(
            f"{what} is loaded with Hugging Face `datasets`, which is not "
            "installed: pip install '.[lm]' in a checkout of keras-qrnn"
        )


def refuse_revision(revision: str | None, from_hub: bool) -> None:
    """Raises a ValueError for a revision of data that do not come from the hub."""
    if revision is not None and not from_hub:
        raise ValueError(
            "Argument `revision` goes with a data set of the hub, not with files or "
            f"the sample. Received: revision={revision!r}"
        )


def load_columns(
    name: str,
    revision: str,
    splits: Sequence[str],
    columns: Sequence[str],
    advice: str,
) -> tuple[Columns, str]:
    """Columns of the splits of a data set on the hub.

    Args:
        name: name of the data set, `owner/name`.
        revision: revision of the data set. `refs/convert/parquet` has the files that
            the hub made with a loading script.
        splits: names of the splits.
        columns: names of the columns.
        advice: what a user can do instead if the hub cannot be reached.

    Returns:
        For each split the values of each column; and the commit that `revision` was
        at and that was loaded. With HF_HUB_OFFLINE the hub is not asked for a commit:
        then `revision` itself.

    Raises:
        ValueError: if the data set lacks a split or a column.
        ConnectionError: if the hub or the data set cannot be reached.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError
    from huggingface_hub import constants

    quoted = urllib.parse.quote(revision, safe="")
    url = f"{constants.ENDPOINT}/api/datasets/{name}/revision/{quoted}"
    commit = revision
    try:
        if not constants.HF_HUB_OFFLINE:
            # `datasets` retries for minutes. So one request first tests whether the
            # hub can be reached.
            with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
                commit = _commit_in(answer.read())
        found = load_dataset(name, revision=commit)
    except (OSError, http.client.HTTPException, DatasetsError) as error:
        raise ConnectionError(
            f"Could not load {name} ({revision}) from {constants.ENDPOINT}: "
            f"{type(error).__name__}: {error}. {advice}, or HF_HUB_OFFLINE=1 for a "
            "copy that was downloaded before."
        ) from error
    _check_names(name, "splits", splits, found)
    for split in splits:
        _check_names(name, "columns", columns, found[split].column_names)
    values = {
        split: {column: list(found[split][column]) for column in columns}
        for split in splits
    }
    return values, commit


def _commit_in(answer: bytes) -> str:
    """The commit in the hub's description of a revision."""
    try:
        return str(json.loads(answer)["sha"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConnectionError(f"its answer names no commit: {answer[:80]!r}") from error


def _check_names(
    name: str, what: str, expected: Sequence[str], found: Iterable[str]
) -> None:
    if missing := set(expected) - set(found):
        raise ValueError(
            f"{name} must have the {what} {', '.join(expected)}. It has no "
            f"{min(missing)}. Received: {', '.join(found)}"
        )
