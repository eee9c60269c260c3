"""What a TensorFlow graph needs: functions compiled by XLA, and gradients by hand.

`run` has XLA compile a function where that pays. `gradient_by_hand` takes the place of
`tf.custom_gradient`. Both keep what they make in the graph, so it is freed with it.
"""

import functools
import itertools
import sys
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import record


def run(function: Callable, sequence: tf.Tensor, *arguments: Any) -> Any:
    """`function(sequence, *arguments)`, by XLA if `is_compiled(sequence)`."""
    chosen = _by_xla(function) if is_compiled(sequence) else function
    return chosen(sequence, *arguments)


def is_compiled(sequence: tf.Tensor) -> bool:
    """Whether XLA compiles functions of `sequence`, of shape `(batch, time, ...)`.

    XLA takes a tenth of a second for each new shape. So only graphs that know the
    number of steps are compiled. An eager call, or a graph for any number of steps, may
    meet a new shape at every call.
    """
    in_graph = not tf.executing_eagerly()
    has_xla = sys.platform != "darwin"  # a Mac's GPU has no XLA
    known = in_graph and has_xla and sequence.shape[1] is not None
    return known and not has_gpu() and not is_traced_by(WITHOUT_XLA)


# These modules trace graphs for formats that hold no function compiled by XLA.
WITHOUT_XLA = (
    "keras.src.export.onnx", "keras.src.export.openvino", "tf2onnx", "openvino"
)  # fmt: skip
# These trace for LiteRT. It holds such functions, but no list of tensors whose sizes
# are unknown.
LITERT = ("keras.src.export.litert", "tensorflow.lite")


def is_traced_by(modules: tuple[str, ...]) -> bool:
    """Whether one of these modules, or one inside, traces the present graph.

    A graph does not say for which format it is traced. So this looks for the modules on
    the call stack.
    """
    frame: FrameType | None = None if tf.executing_eagerly() else sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith(modules):
            return True
        frame = frame.f_back
    return False


def _by_xla(function: Callable) -> Callable:
    """`function` compiled by XLA, once for each shape in one graph.

    The graph keeps the compiled function. If this module kept it, its memory would
    never be freed, not even after the model is deleted.
    """
    compiled = _kept_by(tf.compat.v1.get_default_graph(), "compiled")
    if function not in compiled:
        compiled[function] = tf.function(function, jit_compile=True, autograph=False)
    return compiled[function]


def gradient_by_hand(function: Callable) -> Callable:
    """`tf.custom_gradient`, but the gradient is freed together with its graph.

    In a graph, each call registers its gradient under a new name, which is never
    removed: SavedModel stores gradients by name. `tf.custom_gradient` registers a
    function that holds the graph, megabytes for each model. Here the graph holds the
    gradient, and the registered function holds a weak reference to the graph.

    Args:
        function: takes tensors. Returns the results and a second function, which takes
            the gradients by the results and returns the gradients by the arguments.
    """

    @functools.wraps(function)
    def run(*arguments: tf.Tensor) -> tf.Tensor | tuple[tf.Tensor, ...]:
        if tf.executing_eagerly():
            return tf.custom_gradient(function)(*arguments)
        results, gradient = function(*arguments)
        flat = tf.nest.flatten(results)

        def gradients(*d_results: tf.Tensor) -> list[tf.Tensor | None]:
            # `identity_n` below also takes the results: they get no gradient from it.
            found = gradient(*d_results[: len(flat)])
            return [None] * len(flat) + tf.nest.flatten(found)

        given = [*flat, *arguments]
        name = f"KerasQrnnGradientByHand-{next(_numbers)}"
        graph = tf.compat.v1.get_default_graph()
        _kept_by(graph, "gradients")[name] = gradients
        _register(name, weakref.ref(graph))
        with graph.gradient_override_map({"IdentityN": name}):
            taken = tf.identity_n(given)
        record.record_operation(name, taken, given, gradients)  # for a tape
        return tf.nest.pack_sequence_as(results, taken[: len(flat)])

    return run


_numbers = itertools.count()


def _register(name: str, graph: weakref.ref) -> None:
    """Registers the gradient `name` that `graph` keeps. The graph may be freed."""

    @tf.RegisterGradient(name)
    def gradients(
        operation: tf.Operation | None, *d_results: tf.Tensor
    ) -> list[tf.Tensor | None]:
        return _kept_by(graph(), "gradients")[name](*d_results)


def _kept_by(graph: tf.Graph, name: str) -> dict:
    """A dictionary that the graph keeps for this module, called `name`."""
    name = f"_keras_qrnn_{name}"
    if not hasattr(graph, name):
        setattr(graph, name, {})
    return getattr(graph, name)


@functools.cache
def as_graph(function: Callable) -> Callable:
    """`function` as a graph, where it is called eagerly."""
    # TensorFlow traces a few shapes one by one, then shapes of unknown sizes once.
    return tf.function(function, reduce_retracing=True, autograph=False)


@functools.cache
def has_gpu() -> bool:
    """Whether the machine has a GPU that TensorFlow may use.

    The machine decides, because a graph does not know on which device it will run.
    """
    return bool(tf.config.list_logical_devices("GPU"))
