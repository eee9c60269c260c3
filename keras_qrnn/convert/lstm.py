"""LSTM layers of a model become QRNN layers. Their weights cannot be carried over."""

from typing import Any

import keras

from keras_qrnn.layers import QRNN


def from_lstm(layer: keras.layers.Layer, **arguments: Any) -> keras.layers.Layer:
    """A new layer with the arguments of `layer`, with QRNN in place of LSTM.

    It is meant as the `clone_function` of `keras.models.clone_model`. An LSTM gives a
    QRNN of the same name and arguments. Another layer gives a new one of its class;
    LSTMs in it, as in a `Bidirectional` or a model, become QRNNs. LSTM means
    `keras.layers.LSTM` itself. A subclass may compute something else: it stays as it
    is, alone and in another layer.

    Args:
        layer: any layer that `get_config` describes.
        **arguments: further arguments of each QRNN, such as `window=3`.

    Returns:
        A layer that is not built. Its weights will be new ones.

    Raises:
        ValueError: if an LSTM has an argument for which a QRNN has nothing, such as
            `recurrent_dropout=0.2`. A list of the arguments is in `QRNN.from_config`.

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
        # In the config of a functional model a layer has these two beside.
        beside = {n: config[n] for n in ("name", "inbound_nodes") if n in config}
        return beside | keras.saving.serialize_keras_object(layer)
    return {name: _with_qrnns(value, arguments) for name, value in config.items()}
