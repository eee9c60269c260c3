"""Which scan: one step at a time, or in blocks of time side by side.

Step by step, a scan of `time` steps pays the cost of a step's dispatch `time`
times. Where a step is small that cost is all there is. Then time is cut in
blocks of `length`: all blocks advance together, each from a zero state, keeping
the running product of their decays (`length` steps); each block's last state is
carried into the next (`time / length` steps); one elementwise pass adds the
carried states. More arithmetic, far fewer steps.
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
