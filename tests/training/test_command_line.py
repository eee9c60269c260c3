"""How a command ends."""

import os
import sys

import pytest

from keras_qrnn.training.command_line import run_command

pytestmark = pytest.mark.one_backend
ENDED = "x.py: stopped: the program that reads its output has ended."


def unread():
    """A pipe that nobody reads any more."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


@pytest.mark.parametrize("flush", [True, False])
def test_output_that_nobody_reads(flush, monkeypatch, capsys):
    with unread() as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert run_command("x.py", lambda: print("answer", flush=flush)) == 1
        assert capsys.readouterr().err == f"{ENDED}\n"
        stdout.flush()  # as Python does at exit
        with unread() as stderr:  # 2>&1
            monkeypatch.setattr(sys, "stderr", stderr)
            assert run_command("x.py", lambda: print("a", file=stderr, flush=True)) == 1
            stderr.flush()


def test_a_training_says_how_it_goes_on(monkeypatch, capsys):
    def command():
        raise BrokenPipeError

    assert run_command("x.py", command, on_interrupt="Use --resume.") == 1
    assert capsys.readouterr().err == f"{ENDED} Use --resume.\n"
