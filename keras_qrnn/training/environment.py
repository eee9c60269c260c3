"""The machine and the versions that a result was made with."""

import datetime
import importlib
import importlib.metadata
import importlib.util
import os
import platform
from pathlib import Path

import keras


def environment() -> dict[str, str]:
    """The machine, the versions and today's date (ISO 8601).

    Returns:
        A dict with the strings `hardware`, `versions` and `date`.
    """
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        names = [line.split(":", 1)[1] for line in lines if "model name" in line]
        model = names[0].strip() if names else model
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # Linux: the cores that this process may use
        cores = len(os.sched_getaffinity(0))
    backend = keras.config.backend()
    hardware = f"{model}, {cores} core{'s' if cores > 1 else ''}"
    if device := accelerator(backend):
        hardware = f"{device}; {hardware}"
    versions = [f"{backend} {importlib.import_module(backend).__version__}"]
    versions.append(f"keras {keras.__version__}")
    if backend == "torch" and importlib.util.find_spec("numba"):
        versions.append(f"numba {importlib.metadata.version('numba')}")
    if policy := os.environ.get("OMP_WAIT_POLICY"):
        versions.append(f"OMP_WAIT_POLICY={policy}")
    return {
        "hardware": hardware,
        "versions": ", ".join(versions),
        "date": datetime.date.today().isoformat(),
    }


def accelerator(backend: str) -> str | None:
    """The name of the GPU or TPU that the backend computes on. None on a CPU."""
    module = importlib.import_module(backend)
    if backend == "torch" and module.cuda.is_available():
        return module.cuda.get_device_name()
    if backend == "jax" and module.default_backend() != "cpu":
        return module.devices()[0].device_kind
    if backend == "tensorflow" and (
        found := module.config.list_physical_devices("GPU")
    ):
        return module.config.experimental.get_device_details(found[0])["device_name"]
    return None
