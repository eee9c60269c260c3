"""A sample of the options in `bad_options.py`, in this process."""

import contextlib
import random

import pytest

from tests.examples import bad_options

pytestmark = pytest.mark.one_backend("torch")
SAMPLE = 40  # of each command


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("bad")
    bad_options.prepare(path)
    return path


def test_there_are_some_six_hundred_cases():
    cases = bad_options.cases()
    assert len(cases) > 600 and len(set(cases)) == len(cases)


@pytest.mark.parametrize("command", bad_options.COMMANDS)
def test_bad_options_are_refused_in_one_line(directory, command):
    cases = [case for case in bad_options.cases() if case.command == command]
    cases = random.Random(1).sample(cases, min(SAMPLE, len(cases)))
    main = bad_options.load(command).main
    with contextlib.chdir(directory):
        found = {case: bad_options.complaint(case, main, directory) for case in cases}
    assert not {case: why for case, why in found.items() if why}
