"""How time is cut: a scan in blocks, the rest of a layer in pieces.

Step by step, a scan of `time` steps pays the cost of a step's dispatch `time`
times. Where a step is small that cost is all there is. Then time is cut in
blocks of `length`: all blocks advance together, each from a zero state, keeping
the running product of their decays (`length` steps); each block's last state is
carried into the next (`time / length` steps); one elementwise pass adds the
carried states. More arithmetic, far fewer steps.

Inference convolves and pools a long sequence in pieces, one after the other. The
gates of all steps are the largest array of a layer, and on a CPU the pages of a
large new array cost more than the arithmetic on it; the gates of a piece fit the
caches and memory that is already there. Where a gradient is taken the gates must
last, and only what is computed from them may live for a piece (PyTorch; XLA fuses
it away).
"""

import math

# Up to this many elements a step costs its dispatch and little else.
SMALL_STEP = 4096


def block_length(time: int | None, width: int | None) -> int | None:
    """Steps in a block; `time` itself where one block is best.

    Args:
        time: number of steps, None where it is not known while tracing.
        width: elements in one step, batch * units; None likewise.
    """
    if time is None or width is None or width > SMALL_STEP or time < 64:
        return time
    return math.isqrt(time)


def piece_length(time: int | None, batch: int | None, rows: int) -> int | None:
    """Steps in a piece of about `rows` steps of all sequences; at most `time`.

    Args:
        time: number of steps, None where it is not known while tracing.
        batch: number of sequences, None likewise.
        rows: what suits the backend.
    """
    if time is None or batch is None:
        return time
    return min(time, max(1, rows // max(1, batch)))
