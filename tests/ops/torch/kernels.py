"""Compares a set of kernels, Triton's or Numba's, with the loops of `loops.py`."""

import numpy as np
import torch

from keras_qrnn.ops.equations import GATES
from keras_qrnn.ops.torch import loops

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SCALES = {
    "none": lambda rng, batch, time, units: None,
    "number": lambda rng, batch, time, units: 0.7,
    "steps": lambda rng, batch, time, units: rng.random((time, batch, 1)) < 0.7,
    "units": lambda rng, batch, time, units: rng.random((time, batch, units)) < 0.7,
    "factors": lambda rng, batch, time, units: rng.random((time, batch, 1)),
}


def check_pool(kernels, dtype, pooling, scale, activate, shape, device=DEVICE):
    """Values and gradients on random arrays; `shape` is that of the outputs."""
    batch, time, units = shape
    dtype = getattr(torch, dtype)
    accumulator = torch.promote_types(dtype, torch.float32)
    rng = np.random.default_rng(0)

    def draw(*shape, dtype):
        return torch.asarray(rng.normal(size=shape), device=device).to(dtype)

    scale = SCALES[scale](rng, batch, time, units)
    if isinstance(scale, np.ndarray):
        scale = torch.asarray(scale, device=device)
        scale = scale.to(accumulator) if scale.is_floating_point() else scale
    gates = draw(time, batch, len(GATES[pooling]) * units, dtype=dtype)
    if not activate:
        gates = gates.sigmoid()
    state = draw(
        units, batch, dtype=accumulator
    ).T  # in no order that is taken for granted
    arguments = gates, state, scale, pooling, activate
    want = loops.pool(*arguments)
    got = kernels.pool(*arguments)
    want += want[0], want[1][-1]
    got += kernels.pool_for_inference(*arguments)
    above = want[1], draw(time, batch, units, dtype=dtype)
    above = *above, draw(batch, units, dtype=accumulator)
    want += loops.pool_gradients(*arguments, *above)
    got += kernels.pool_gradients(*arguments, *above)
    # Of bfloat16 Triton's interpreter stores the upper half: it does not round.
    room = {torch.bfloat16: 2**-7, torch.float16: 2**-10, torch.float32: 1e-5}
    for g, w in zip(got, want, strict=True):
        assert g.dtype == w.dtype
        rtol = room.get(g.dtype, 1e-13)
        torch.testing.assert_close(
            g, w, rtol=rtol, atol=min(rtol, room.get(dtype, 1e-13))
        )


def check_tanh(kernels, dtype, room, device=DEVICE):
    """It draws small values too, where the usual formula cancels."""
    x = torch.logspace(-9, 1, 200, dtype=getattr(torch, dtype), device=device)
    x = torch.cat([x, -x])[None]
    gates = torch.cat([x, torch.full_like(x, -90)], dim=-1)[None]  # nothing is kept
    got, _ = kernels.pool(gates, torch.zeros_like(x), None, "f", True)
    torch.testing.assert_close(got[0], x.tanh(), rtol=room, atol=0)
