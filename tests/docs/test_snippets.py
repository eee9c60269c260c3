"""Every Python example of README.md and docs/ runs, on each backend."""

import importlib
import importlib.util
import os
import re
import tomllib
from pathlib import Path

import keras
import numpy as np
import pytest

from tests.examples.programs import ROOT, script

PAGES = {
    str(path.relative_to(ROOT)): re.findall(
        r"^```python\n(.*?)^```", path.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
}
BACKEND = keras.config.backend()

differentiable = pytest.mark.skipif(
    BACKEND == "numpy", reason="the NumPy backend has no gradients"
)


def run(page):
    """The names that the examples of a page define, run in one namespace in order."""
    names = {}
    for number, block in enumerate(PAGES[page], 1):
        # In its first line, "# backend: torch": the example is of that backend only;
        # "# needs: onnxruntime": it runs where that is, as in `make test-export`.
        only = re.match(r"# backend: (\w+)", block)
        needs = re.match(r"# .*needs: (\w+)", block)
        if (only is None or only.group(1) == BACKEND) and (
            needs is None or importlib.util.find_spec(needs.group(1))
        ):
            exec(compile(block, f"<{page}, example {number}>", "exec"), names)
    return names


@pytest.fixture(autouse=True)
def _in_a_place_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", dict(os.environ))  # examples set KERAS_BACKEND


def equal(got, expected):
    got, expected = map(keras.ops.convert_to_numpy, (got, expected))
    np.testing.assert_allclose(got, expected, atol=1e-5)


@differentiable
def test_readme(capsys):
    names = run("README.md")
    assert names["accuracy"] > 0.95
    printed = capsys.readouterr().out.splitlines()
    (shown,) = re.findall(
        r"```text\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL
    )
    shown = [line for line in shown.splitlines() if line != "..."]

    def words(line):
        return re.sub(r"[\d.]+", "0", line).replace("0ms", "0s")

    assert {words(line) for line in shown} <= {words(line) for line in printed}
    last = float(shown[-1].rpartition(" ")[2])
    assert abs(last - names["accuracy"]) < 0.04


@pytest.mark.one_backend
def test_readme_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").split()) <= 900


@differentiable
@pytest.mark.parametrize(
    "page", [page for page in PAGES if PAGES[page] and page != "README.md"]
)
def test_page(page):
    names = run(page)
    if page == "docs/from-lstm.md":
        pieces = [names["first"], names["second"]]
        equal(keras.ops.concatenate(pieces, axis=1), names["whole"])
        assert names["decoded"].shape == (None, None, 16)

    if page == "docs/streaming.md":
        layer, x, mask = names["layer"], names["x"], names["mask"]
        mask = np.concatenate([np.ones((1, 3), bool), mask], axis=1)
        whole, *_ = layer(x, mask=mask)
        pieces = [names["first"], names["second"]]
        equal(keras.ops.concatenate(pieces, axis=1), whole)


@pytest.mark.one_backend
def test_links():
    """Files that the pages name exist; in an sdist, all that it includes."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    left_out = project["tool"]["hatch"]["build"]["targets"]["sdist"]["exclude"]
    missing = []
    for page in PAGES:
        text = (ROOT / page).read_text("utf-8")
        for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", text):
            path = ((ROOT / page).parent / target).resolve()
            if not path.exists():
                missing.append((page, path.relative_to(ROOT)))
    if (ROOT / "PKG-INFO").exists():  # an sdist
        ends = [pattern.replace("**/", "") for pattern in left_out]
        missing = [
            (page, path)
            for page, path in missing
            if not any(in_place(path, pattern) for pattern in ends)
        ]
    assert not missing


def in_place(path, pattern):
    """Whether `pattern`, a directory and a file's pattern in it at any depth, fits."""
    directory, _, name = pattern.rpartition("/")
    return path.match(name) and path.is_relative_to(directory)


@pytest.mark.one_backend
def test_places_in_the_design():
    """Files that docs/design.md names exist."""
    text = (ROOT / "docs" / "design.md").read_text("utf-8")
    places = re.findall(r"`([\w/]+/|[\w/]+\.py)`", text)
    assert len(places) > 20
    package = ROOT / "keras_qrnn"
    for place in places:
        found = [
            at / place
            for at in (ROOT, package, package / "ops", ROOT / "tests" / "ops")
        ]
        assert any(path.exists() for path in found), place


def help_of(program, task):
    """The help of a program. That of the search is for a task."""
    if program == "tuning/search.py":
        search = importlib.import_module("search")
        return search.parser(search.TASKS[task]).format_help()
    return script(Path(program).stem).parser().format_help()


@pytest.mark.one_backend
@pytest.mark.parametrize(
    "program",
    [
        "examples/classify.py",
        "examples/release_weights.py",
        "examples/train_lm.py",
        "examples/train_sentiment.py",
        "examples/train_translation.py",
        "examples/translate.py",
        "tuning/search.py",
    ],
)
def test_options_of_commands(program):
    """The options that the pages' commands have are options of the program."""
    commands = [
        command.partition(program)[2]
        for page in PAGES
        for block in re.findall(
            r"```bash\n(.*?)```", (ROOT / page).read_text("utf-8"), re.DOTALL
        )
        for command in block.replace("\\\n", " ").splitlines()
        if program in command
    ]
    assert commands
    for command in commands:
        task = re.search(r"--task (\w+)", command)
        known = help_of(program, task[1] if task else "lm")
        given = set(re.findall(r"(?<=\s)--\w+", command))
        assert given <= set(re.findall(r"--\w+", known)), command


@pytest.mark.one_backend
def test_spaces_of_the_search():
    """docs/search.md shows the values that are searched by default."""
    tasks = importlib.import_module("search").TASKS
    text = (ROOT / "docs" / "search.md").read_text("utf-8")
    for name, task in tasks.items():
        shown = text.partition(f"`--task {name}`\n\n")[2].partition("\n\n")[0]
        head, _, *rows = [
            [cell.strip() for cell in line.strip("|").split("|")]
            for line in shown.splitlines()
        ]
        columns = [re.search(r"`(?:--)?(\w+)`", cell)[1] for cell in head[2:]]
        spaces = {column: {} for column in columns}
        for option, _, *values in rows:
            for column, value in zip(columns, values, strict=True):
                if value:
                    spaces[column][option.strip("`-")] = value
        assert spaces == {n: dict(r.space) for n, r in task.recipes.items()}
