"""How time is cut: a scan in blocks, the rest of a layer in pieces.

Step by step, a scan of `time` steps pays the cost of a step's dispatch `time`
times. Where a step is small that cost is all there is. Then time is cut in
blocks: all blocks advance together, each from a zero state, and their decays are
multiplied; the state at each block's end follows from the one at the end of the block
before, a scan of as many steps as there are blocks; what each block was handed is
added to its states by one elementwise pass (TensorFlow), or all blocks advance once
more, from it (PyTorch). More arithmetic, far fewer steps.

Inference convolves and pools a long sequence in pieces, one after the other. The
gates of all steps are the largest array of a layer, and on a CPU the pages of a
large new array cost more than the arithmetic on it; the gates of a piece fit the
caches and memory that is already there. Where a gradient is taken the gates must
last, and only what is computed from them may live for a piece (PyTorch; XLA fuses
it away).
"""

# Up to this many elements a step costs its dispatch and little else.
SMALL_STEP = 4096


def is_cut_in_blocks(time: int | None, width: int | None) -> bool:
    """Whether a scan in blocks is faster than one step by step.

    Args:
        time: number of steps, None where it is not known while tracing.
        width: elements in one step, batch * units; None likewise.
    """
    known = time is not None and width is not None
    return known and width <= SMALL_STEP and time >= 64


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
