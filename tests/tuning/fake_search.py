"""The search as a program whose training is fake: for tests of processes."""

import os
import sys
import time

import search
import search_tuner
from tests.tuning.searches import FAKE_TASKS, fake_training


def slow_training(experiment, directory, resume, callbacks, verbose):
    """A trial takes `save_every` seconds. Run again, it takes no time.

    The file `pid` tells that it runs, and in which process.
    """
    directory.mkdir(parents=True, exist_ok=True)
    seconds = 0 if (directory / "pid").exists() else experiment.options.save_every
    (directory / "pid").write_text(str(os.getpid()))
    time.sleep(seconds)
    return fake_training(experiment.options, directory, callbacks)


search.__file__ = __file__  # the workers', too
search.TASKS = FAKE_TASKS
search.train_experiment = slow_training
search_tuner.write_session = lambda *args: None
sys.exit(search.main())
