"""What each of the two processes of `test_two_processes_are_one` does.

    python -m tests.training.two_processes DIRECTORY

Keras's variables tell it which of the processes it is.
"""

import contextlib
import sys
from pathlib import Path

from keras_qrnn.training.experiment import train_experiment
from tests.training.tasks import TASKS
from tests.training.test_recipe import Interrupt

for callbacks in ([Interrupt(1, 2)], []):
    # The weights are divided among a process's devices, the rows among the processes.
    experiment = TASKS["language_model"](distribution="model")
    with contextlib.suppress(KeyboardInterrupt):
        train_experiment(
            experiment, Path(sys.argv[1]), resume=True, callbacks=callbacks, verbose=0
        )
