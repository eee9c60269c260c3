"""The files that are installed and the modules that are imported."""

import ast
import subprocess
import sys
import zipfile
from graphlib import TopologicalSorter
from pathlib import Path

import keras
import pytest

import keras_qrnn
from keras_qrnn.data import load_corpus
from keras_qrnn.training.callbacks import RunFiles
from keras_qrnn.training.plots import pyplot

ROOT = Path(__file__).parents[1]


@pytest.mark.one_backend
def test_wheel_holds_the_package_alone(tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel"]
    subprocess.run([*command, "-d", str(tmp_path)], cwd=ROOT, check=True)
    (path,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        names = wheel.namelist()
        info = f"keras_qrnn-{keras_qrnn.__version__}.dist-info"
        assert {name.partition("/")[0] for name in names} == {"keras_qrnn", info}
        metadata = wheel.read(f"{info}/METADATA").decode()
    packaged = {name for name in names if name.startswith("keras_qrnn/")}
    sources = (ROOT / "keras_qrnn").rglob("*.py")
    assert packaged == {
        "keras_qrnn/py.typed",
        *(str(path.relative_to(ROOT)) for path in sources),
    }
    assert f"{info}/licenses/LICENSE" in names
    extras = {"tensorflow", "jax", "torch", "lm", "tuning", "test", "docs", "all"}
    lines = metadata.splitlines()
    assert {f"Provides-Extra: {extra}" for extra in extras} <= set(lines)
    assert "License-Expression: Apache-2.0" in lines
    required = [line for line in lines if line.startswith("Requires-Dist")]
    always = {line.split()[1] for line in required if "extra ==" not in line}
    assert {name.partition(">")[0] for name in always} == {"keras", "numpy"}


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("module", "use"),
    [
        ("datasets", lambda path: load_corpus(data_dir=path)),
        ("matplotlib", lambda path: pyplot()),
        ("tensorboardX", lambda path: RunFiles(path, None, {}, [], 1).on_train_begin()),
    ],
)
def test_missing_package_names_the_extra(monkeypatch, tmp_path, module, use):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        ImportError, match=rf"{module}.*'\.\[lm\]' in a checkout of keras-qrnn"
    ):
        use(tmp_path)


def test_package_imports_only_its_backend():
    """After Keras, `import keras_qrnn` loads only its own modules."""
    program = (
        "import sys, keras; before = set(sys.modules); import keras_qrnn\n"
        "print(*{m.partition('.')[0] for m in set(sys.modules) - before})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    others = {"tensorflow", "jax", "torch", "datasets", "keras_tuner", "matplotlib"}
    others |= {"tensorboardX", "pandas", "pyarrow"}
    assert not set(done.stdout.split()) & (others - {keras.config.backend()})
    assert "keras_qrnn" in done.stdout.split()


def imported(path, modules):
    """Those of `modules` that a file imports as it runs."""
    names, nodes = set(), [ast.parse(path.read_text("utf-8"))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                names.add(name if name in modules else node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)):
            nodes += ast.iter_child_nodes(node)
    return names & modules


HEIGHTS = {"ops": 0, "layers": 1, "models": 2, "data": 2, "training": 3}


@pytest.mark.one_backend
def test_imports_point_one_way():
    """No module imports itself through others, and no part imports a higher one."""
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for path in (ROOT / "keras_qrnn").rglob("*.py")
    }
    files |= {path.stem: path for path in (ROOT / "tuning").glob("*.py")}
    files = {name.removesuffix(".__init__"): path for name, path in files.items()}
    del files["keras_qrnn"]
    graph = {name: imported(path, files.keys()) for name, path in files.items()}
    # `ops/backend.py` imports the active backend by its name.
    backends = ("jax", "numpy", "tensorflow", "torch")
    graph["keras_qrnn.ops.backend"] |= {f"keras_qrnn.ops.{name}" for name in backends}
    tuple(TopologicalSorter(graph).static_order())  # a CycleError names the modules
    for name, others in graph.items():
        for other in others:
            heights = [
                HEIGHTS[each.split(".")[1]]
                for each in (name, other)
                if each.count(".") and each.split(".")[1] in HEIGHTS
            ]
            assert heights == sorted(heights, reverse=True), (name, other)


@pytest.mark.one_backend
def test_version():
    assert keras_qrnn.__version__ == "0.1.0"
