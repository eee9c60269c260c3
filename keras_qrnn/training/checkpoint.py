"""The whole state of a training run in one file, written at once or not at all."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_qrnn._files import atomic_write, reading
from keras_qrnn._processes import is_first, whole_array

FORMAT = "keras_qrnn checkpoint 1"


def _named(model: keras.Model) -> dict[str, keras.Variable]:
    groups = {
        # Weights, kept states and the seeds of dropout and zoneout.
        "model": model.variables,
        "optimizer": model.optimizer.variables,
        "metrics": model.metrics_variables,
    }
    return {
        f"{group}/{n}": variable
        for group, variables in groups.items()
        for n, variable in enumerate(variables)
    }


def _to_numpy(variable: keras.Variable) -> np.ndarray:
    array = keras.ops.convert_to_numpy(whole_array(variable))
    # NumPy has no bfloat16, and would write bytes that it cannot read.
    return array.astype("float32") if variable.dtype == "bfloat16" else array


def save_checkpoint(path: str | os.PathLike, model: keras.Model, meta: dict) -> None:
    """Writes the model, its optimizer and metrics, and `meta`.

    Where several processes train together, all call this and process 0 writes.

    Args:
        path: the file, a `.npz` archive.
        model: compiled, its optimizer built.
        meta: how far the run is, as JSON.
    """
    arrays: dict[str, Any] = {
        name: _to_numpy(variable) for name, variable in _named(model).items()
    }
    if not is_first():
        return
    header = json.dumps({"format": FORMAT, **meta})
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez(file, header=np.array(header), **arrays)


def read_meta(path: str | os.PathLike) -> dict:
    """The `meta` of a checkpoint.

    Raises:
        ValueError: if the file is damaged or is no checkpoint.
    """

    def take(archive: np.lib.npyio.NpzFile) -> None:
        """Reads nothing: the header is enough."""

    return _read(path, take)[0]


def load_checkpoint(path: str | os.PathLike, model: keras.Model) -> dict:
    """Loads a checkpoint's values into the model and returns its `meta`.

    If a value does not fit, nothing is changed.

    Raises:
        ValueError: if the file is damaged, is no checkpoint, or is of another model.
    """

    def values(archive: np.lib.npyio.NpzFile) -> list:
        named = _named(model)
        if further := set(archive.files) - named.keys() - {"header"}:
            raise ValueError(f"the model has no {min(further)}")
        return [(variable, archive[name]) for name, variable in named.items()]

    meta, found = _read(path, values)
    for variable, value in found:
        if tuple(variable.shape) != value.shape:
            raise ValueError(
                f"The checkpoint {path} is of another model: {variable.path} has shape "
                f"{tuple(variable.shape)}. Received: {value.shape}"
            )
    for variable, value in found:
        variable.assign(value)
    return meta


def _read(path: str | os.PathLike, take: Callable) -> tuple:
    with (
        reading(path, "a whole checkpoint of this model"),
        Path(path).open("rb") as file,
        np.load(file, allow_pickle=False) as archive,
    ):
        meta = json.loads(str(archive["header"]))
        if meta.pop("format") != FORMAT:
            raise ValueError("of another format")
        return meta, take(archive)
