"""PyTorch: what is exported runs without this package."""

import shutil

import keras
import numpy as np
import pytest

if keras.config.backend() != "torch":
    pytest.skip("exports of PyTorch", allow_module_level=True)

import torch

from keras_qrnn import QRNN
from keras_qrnn.ops.torch import recorded


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("time", [5, 100])
def test_torch_export_takes_any_batch(time, strict):
    """The exported program has no operation of this package."""
    layer = QRNN(4, return_sequences=True)
    x = torch.rand((2, time, 3))
    want = layer(x)
    batch = torch.export.Dim("batch")
    exported = torch.export.export(
        layer, (x,), dynamic_shapes=(({0: batch},),), strict=strict
    )
    assert "keras_qrnn" not in exported.graph_module.code
    torch.testing.assert_close(exported.module()(x), want)
    for rows in (1, 3, 1100):  # also more than are one piece, or steps of a block
        x = torch.rand((rows, time, 3))
        torch.testing.assert_close(exported.module()(x), layer(x))


class Masked(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = QRNN(4, 3, "ifo", return_sequences=True)

    def forward(self, x, mask):
        return self.layer(x, mask=mask, context=x[:, 0])


@pytest.mark.parametrize("strict", [False, True])
def test_torch_export_takes_any_batch_and_time_and_mask(strict):
    model, sizes = Masked(), {0: torch.export.Dim("batch"), 1: torch.export.Dim("time")}

    def draw(batch, time):
        return torch.rand(batch, time, 3), torch.rand(batch, time) > 0.4

    model(*draw(2, 5))
    exported = torch.export.export(
        model, draw(2, 5), dynamic_shapes=(sizes, sizes), strict=strict
    )
    for node in exported.graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload):
            assert node.target.namespace == "aten"
            assert not node.target._schema.is_mutable
    for size in ((2, 5), (1, 1), (3, 70)):
        arguments = draw(*size)
        torch.testing.assert_close(exported.module()(*arguments), model(*arguments))


@pytest.mark.parametrize("time", [1, 7, 64])
def test_valid_steps_without_a_sort(time):
    """What LiteRT's converter is shown, for it has no sort."""
    mask = torch.rand(9, time) > torch.linspace(-0.1, 1.1, 9)[:, None]
    steps = torch.where(mask, torch.arange(time), time)
    assert torch.equal(recorded.valid_first(mask), steps.sort(1).values)


def masked_model(time):
    inputs = keras.Input((time, 3))
    x = keras.layers.Masking()(inputs)
    return keras.Model(inputs, QRNN(4, 3, return_sequences=True)(x))


def values(batch, time):
    x = np.random.default_rng(time).normal(size=(batch, time, 3)).astype("float32")
    x[0, time // 2 :] = 0
    return x


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_what_the_onnx_exporter_traces():
    """`model.export(format="onnx")` traces one row, with one step if unknown."""
    model = masked_model(None)
    with torch.no_grad():
        traced = torch.jit.trace(model, torch.rand(1, 1, 3), check_trace=False)
        in_place = [n for n in traced.inlined_graph.nodes() if n.kind().endswith("_")]
        assert not [n for n in in_place if n.kind().startswith("aten::")]
        assert not [n for n in traced.inlined_graph.nodes() if "keras" in n.kind()]
        for size in ((1, 1), (2, 5), (3, 70)):
            x = torch.tensor(values(*size))
            torch.testing.assert_close(traced(x), model(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("time", [5, None])
def test_onnx_of_keras(time, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model, path = masked_model(time), tmp_path / "model.onnx"
    sizes = ((2, 5), (3, 5)) if time else ((2, 5), (1, 1), (3, 70))
    want = [model.predict(values(*size), verbose=0) for size in sizes]
    model.export(path, format="onnx", verbose=False)
    session = runtime.InferenceSession(path)
    name = session.get_inputs()[0].name
    for size, expected in zip(sizes, want, strict=True):
        (got,) = session.run(None, {name: values(*size)})
        assert np.abs(got - expected).max() < 1e-5


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_aot_inductor_takes_any_batch_and_time(tmp_path):
    """One compilation. The batch was 2 and the time 5 at the export."""
    pytest.importorskip("onnxruntime", reason="needs `make test-export`")
    model, sizes = Masked(), {0: torch.export.Dim("batch"), 1: torch.export.Dim("time")}

    def draw(batch, time):
        return torch.rand(batch, time, 3), torch.rand(batch, time) > 0.4

    with torch.no_grad():
        model(*draw(2, 5))
        program = torch.export.export(model, draw(2, 5), dynamic_shapes=(sizes, sizes))
        path = torch._inductor.aoti_compile_and_package(
            program, package_path=str(tmp_path / "model.pt2")
        )
        compiled = torch._inductor.aoti_load_package(path)
        for size in ((2, 5), (1, 1), (5, 70)):
            arguments = draw(*size)
            torch.testing.assert_close(compiled(*arguments), model(*arguments))
