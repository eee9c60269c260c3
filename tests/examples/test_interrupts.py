"""Ctrl-C while a program imports its backend, which takes seconds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAMS = [*sorted((ROOT / "examples").glob("*.py")), ROOT / "tuning" / "search.py"]


@pytest.mark.one_backend
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_no_traceback(program, tmp_path):
    for name in ("keras", "keras_qrnn"):  # what comes first is interrupted
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise KeyboardInterrupt")
    done = subprocess.run(
        [sys.executable, program],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
