"""Types that public signatures share. No framework is imported for them."""

from typing import Any, TypeAlias

# A tensor that has values: a `jax.Array`, `tf.Tensor`, `torch.Tensor` or
# `np.ndarray`; in a layer's call also the `keras.KerasTensor` of a functional model.
# These types have no common base class, and which of them a function returns is
# decided by KERAS_BACKEND, which a type checker does not see. A Protocol would take
# them all as arguments, but a result of that type could be passed to no function of
# JAX, TensorFlow or PyTorch.
Tensor: TypeAlias = Any

# A shape in which None stands for a size that is not known yet.
Shape: TypeAlias = tuple[int | None, ...]
