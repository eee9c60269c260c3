import datetime
import importlib
import os
import platform
from pathlib import Path

import keras


def environment() -> dict[str, str]:
    """Where, with what and when something is run: `hardware`, `versions`, `date`."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        names = [line.split(":", 1)[1] for line in lines if "model name" in line]
        model = names[0].strip() if names else model
    cores = os.cpu_count()
    if hasattr(os, "sched_getaffinity"):  # Linux: those that this process may use
        cores = len(os.sched_getaffinity(0))
    backend = keras.config.backend()
    versions = [f"{backend} {importlib.import_module(backend).__version__}"]
    versions.append(f"keras {keras.__version__}")
    if policy := os.environ.get("OMP_WAIT_POLICY"):
        versions.append(f"OMP_WAIT_POLICY={policy}")
    return {
        "hardware": f"{model}, {cores} cores",
        "versions": ", ".join(versions),
        "date": datetime.date.today().isoformat(),
    }
