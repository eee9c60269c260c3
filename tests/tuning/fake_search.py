"""The search as a program whose training is fake: for tests of processes."""

import os
import sys
import time

import search
import search_tuner
from tests.tuning.searches import FakeTask, fake_training


class SlowTask(FakeTask):
    """A trial takes `save_every` seconds. Run again, it takes no time.

    The file `pid` tells that it runs, and in which process.
    """

    def train(self, options, directory, callbacks):
        directory.mkdir(parents=True, exist_ok=True)
        seconds = 0 if (directory / "pid").exists() else options.save_every
        (directory / "pid").write_text(str(os.getpid()))
        time.sleep(seconds)
        return fake_training(options, directory, callbacks)


search.__file__ = __file__  # the workers', too
search.LanguageModelTask = SlowTask
search_tuner.write_session = lambda *args: None
sys.exit(search.main())
