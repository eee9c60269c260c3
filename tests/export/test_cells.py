"""Every cell of the table in docs/other-tools.md: exported, run, compared.

It needs the packages of the extras `export-jax`, `export-tensorflow` and
`export-torch`: `make test-export`.
"""

import keras
import pytest

from tests.export.cells import BACKEND, MODELS, STEPS, TOOLS, check

if BACKEND not in TOOLS:
    pytest.skip("exports nothing", allow_module_level=True)
# In the environments of the other tests these exports would take minutes.
pytest.importorskip("onnxruntime", reason="needs `make test-export`")

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
    if BACKEND == "torch"
    else pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.mark.parametrize("time", [STEPS, None])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("tool", TOOLS.get(BACKEND, []), ids=lambda tool: tool.__name__)
def test_exported_model(tool, name, time, tmp_path):
    keras.utils.set_random_seed(0)
    check(tool, MODELS[name](time), tmp_path)
