"""Stands for Numba in programs that the tests start, and cannot be imported.

Compiling its kernels takes longer than what the program does with them.
"""

raise ImportError("left out of this program")
