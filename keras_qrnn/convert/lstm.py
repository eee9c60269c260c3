"""LSTM layers of a model become QRNN layers. Their weights cannot be carried over."""

from typing import Any

import keras

from keras_qrnn.layers import QRNN


def from_lstm(layer: keras.layers.Layer, **arguments: Any) -> keras.layers.Layer:
    """A new layer with the arguments of `layer`, with QRNN in place of LSTM.

    It is meant as the `clone_function` of `keras.models.clone_model`. An LSTM becomes a
    QRNN of the same name and arguments. Any other layer becomes a new one of its class,
    and LSTMs in it, as in a `Bidirectional` or a model, become QRNNs. A subclass of
    `keras.layers.LSTM` may compute something else. It does not become a QRNN.

    Args:
        layer: any layer that `get_config` describes.
        **arguments: further arguments of each QRNN, such as `window=3`.

    Returns:
        A layer that is not built. Its weights will be new ones.

    Raises:
        ValueError: if an LSTM has an argument that a QRNN cannot have, such as
            `recurrent_dropout=0.2`: see `QRNN.from_config`.

    Example:

    >>> lstm = keras.Sequential([keras.Input((10, 8)), keras.layers.LSTM(4)])
    >>> qrnn = keras.models.clone_model(lstm, clone_function=from_lstm)
    >>> type(qrnn.layers[0]).__name__
    'QRNN'
    """
    if type(layer) is keras.layers.LSTM:
        return QRNN.from_config(layer.get_config() | arguments)
    return type(layer).from_config(_with_qrnns(layer.get_config(), arguments))


def _with_qrnns(config: Any, arguments: dict[str, Any]) -> Any:
    """`config` with each LSTM in it, in Keras's serialized form, replaced by a QRNN."""
    if isinstance(config, list | tuple):
        return type(config)(_with_qrnns(each, arguments) for each in config)
    if not isinstance(config, dict):
        return config
    is_layer = config.get("module") == "keras.layers"
    if is_layer and config.get("class_name") == "LSTM":
        layer = QRNN.from_config(config["config"] | arguments)
        # In the config of a functional model, a layer has two more entries.
        more = {n: config[n] for n in ("name", "inbound_nodes") if n in config}
        return more | keras.saving.serialize_keras_object(layer)
    return {name: _with_qrnns(value, arguments) for name, value in config.items()}
