"""Loads the programs as modules, and writes their options."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[2]


def script(name):
    """The program `NAME.py` of examples/ or tuning/ as a module."""
    (path,) = (
        path
        for directory in ("examples", "tuning")
        if (path := ROOT / directory / f"{name}.py").exists()
    )
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def arguments(**options):
    """Options as a command line has them."""
    return [
        part for name, value in options.items() for part in (f"--{name}", str(value))
    ]
