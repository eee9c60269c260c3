"""What each of the two processes of `test_two_processes_are_one` does.

    python -m tests.training.two_processes DIRECTORY

Keras's variables tell it which of the processes it is.
"""

import contextlib
import sys
import time
from pathlib import Path

import pytest

from keras_qrnn._processes import is_first, wait_for_all
from keras_qrnn.training.command_line import run_command
from keras_qrnn.training.experiment import train_experiment
from tests.training.tasks import TASKS
from tests.training.test_recipe import Interrupt

for callbacks, ends in (
    ([Interrupt(1, 2)], pytest.raises(KeyboardInterrupt)),
    ([], contextlib.nullcontext()),
):
    # The weights are divided among a process's devices, the rows among the processes.
    experiment = TASKS["language_model"](distribution="model")
    with ends:
        train_experiment(
            experiment, Path(sys.argv[1]), resume=True, callbacks=callbacks, verbose=2
        )


def end() -> None:
    """Process 0 ends with an error, and the other one waits for it."""
    if is_first():
        time.sleep(1)  # the other one is waiting by then
        raise ValueError("This is the error of process 0")
    wait_for_all("process 0 never comes here")


sys.exit(run_command("two_processes.py", end))
