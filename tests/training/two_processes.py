"""What each of the two processes of `test_two_processes_are_one` does.

    python -m tests.training.two_processes DIRECTORY

Keras's variables tell it which of the processes it is.
"""

import contextlib
import sys
from pathlib import Path

import pytest

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
