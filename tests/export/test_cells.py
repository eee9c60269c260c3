"""Every cell of the table in docs/other-tools.md: exported, run, compared.

It needs the packages of the extras `export-jax`, `export-tensorflow` and
`export-torch`: `make test-export`.
"""

import numpy as np
import pytest

from keras_qrnn.models import LanguageModel
from tests.export.cells import (
    BACKEND,
    CELLS,
    MODELS,
    TOOLS,
    check,
    refused,
)

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
tools = pytest.mark.parametrize("tool", TOOLS[BACKEND], ids=lambda tool: tool.__name__)


def name_of(cell):
    name, time, masked = cell
    return f"{name}-{'masked' if masked else 'unmasked'}-{time}"


@tools
@pytest.mark.parametrize("cell", CELLS, ids=name_of)
def test_exported_model(tool, cell, tmp_path):
    name, time, masked = cell
    model = MODELS[name](time, masked)
    error = refused(tool, model.inputs[0].shape[1])
    if error is None:
        check(tool, model, tmp_path)
    else:
        # Any error but that of a wrong result.
        with pytest.raises(Exception, match=error) as raised:
            check(tool, model, tmp_path)
        assert not isinstance(raised.value, AssertionError)


@tools
def test_served_language_model(tool, tmp_path):
    """A token at a time, with the states handed on, gives the logits of the whole."""
    model = LanguageModel(9, 3, 4, layers=2, batch_size=2, window=[3, 1])
    model.build()
    model.logits_bias.assign(np.linspace(-1, 1, 9))
    tokens = np.random.default_rng(0).integers(0, 9, (2, 7)).astype("int32")
    whole = model.predict(tokens, batch_size=2, verbose=0)
    server = model.serving_model(time=1)
    states = [np.zeros((2, *each.shape[1:]), each.dtype) for each in server.inputs[1:]]
    server([tokens[:, :1], *states])  # as Keras asks for
    run = tool(server, tmp_path)
    for t in range(tokens.shape[1]):
        logits, *states = map(np.asarray, run([tokens[:, t : t + 1], *states]))
        assert np.abs(logits[:, 0] - whole[:, t]).max() < 1e-5, t
