"""Blocks and doubling, two forms of the scan. Pieces, a form of the layer.

A block is a stretch of the scan. A scan of one step after the other dispatches `time`
steps. If the steps are small, dispatching is almost all of its cost. A scan in blocks
takes fewer, larger steps:

1. All blocks advance together, each from a state of zero. The decays of each block are
   multiplied.
2. The state at the end of each block follows from the one before: a scan with one step
   for each block.
3. Each block gets the state that it should have started from. TensorFlow adds it,
   times the products of the decays, to all states of the block. PyTorch lets all blocks
   advance once more, from that state.

A piece is a stretch of the layer. Inference convolves and pools one piece of a long
sequence after the other. The gates of all steps are a layer's largest array. On a CPU a
page of new memory costs more than the arithmetic on it. The gates of a piece fit in
memory that the process has already, and in the caches.

Training keeps the gates of all steps for the gradient. The arrays computed from them
live for one piece only. PyTorch does this explicitly; elsewhere XLA fuses them away.
"""

# A scan by doubling is for exports that do not know the number of steps. It has no
# loop, but a fixed number of rounds, so it reaches this many steps. After k rounds a
# state depends on the `2**k` steps up to its own, and its product is that of their
# decays. The initial state stands before the first step, with a decay of 0. So a state
# that depends on it has a product of 0 and changes no more.
ROUNDS = 17
REACH = 2**ROUNDS

# A step of at most this many elements costs its dispatch and little else.
SMALL_STEP = 4096


def is_cut_in_blocks(time: int | None, width: int | None) -> bool:
    """Whether a scan in blocks is faster than one step by step.

    Args:
        time: the number of steps, or None where a graph does not know it.
        width: the elements of one step, `batch * units`, or None if unknown.
    """
    if time is None or width is None:
        return False
    return width <= SMALL_STEP and time >= 64


def piece_length(time: int | None, batch: int | None, steps: int) -> int | None:
    """The number of steps in a piece: at least 1, at most `time`.

    A piece has about `steps` steps, those of all sequences counted together.

    Args:
        time: the number of steps, or None if a graph does not know it. The result is
            then None: one piece.
        batch: the number of sequences, or None if a graph does not know it. The result
            is then `time`.
        steps: the number that suits the backend.
    """
    if time is None or batch is None:
        return time
    return min(time, max(1, steps // max(1, batch)))
