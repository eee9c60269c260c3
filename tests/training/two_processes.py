"""What each of the two processes of `test_two_processes_are_one` does.

    python -m tests.training.two_processes DIRECTORY

Keras's variables tell it which of the processes it is.
"""

import contextlib
import sys
from pathlib import Path

from keras_qrnn.training.experiment import train_experiment
from keras_qrnn.training.options import DISTRIBUTIONS
from tests.training.tasks import TASKS
from tests.training.test_recipe import Interrupt

for kind in DISTRIBUTIONS:
    for callbacks in ([Interrupt(1, 2)], [])[kind == "model" :]:
        experiment = TASKS["language_model"](distribution=kind)
        with contextlib.suppress(KeyboardInterrupt):
            train_experiment(
                experiment, Path(sys.argv[1]) / kind, resume=True, callbacks=callbacks,
                verbose=0,
            )  # fmt: skip
