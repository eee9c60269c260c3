"""The recurrence of a QRNN and its poolings, as pure functions.

Each function runs in the module of the active Keras backend (`ops/jax.py`,
`ops/tensorflow.py`, `ops/torch`, `ops/numpy.py`); no other is imported.
"""

from keras_qrnn.ops.pooling import f_pool, fo_pool, ifo_pool
from keras_qrnn.ops.scan import linear_scan

__all__ = ["f_pool", "fo_pool", "ifo_pool", "linear_scan"]
