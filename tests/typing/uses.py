"""Typical uses of the package: `make lint` checks their types, nothing runs them."""

from typing import TYPE_CHECKING

import keras
import numpy as np

from keras_qrnn import (
    QRNN,
    AttentionQRNN,
    Bidirectional,
    QRNNStack,
    f_pool,
    fo_pool,
    ifo_pool,
    linear_scan,
)
from keras_qrnn.convert import from_lstm, load_torch_weights, torch_state_dict
from keras_qrnn.data import CharacterVocabulary, Vocabulary
from keras_qrnn.initializers import ChronoBias
from keras_qrnn.models import (
    SentimentClassifier,
    SentimentModel,
    TranslationModel,
    Translator,
)

if TYPE_CHECKING:
    import jax
    import tensorflow as tf
    import torch


def of_numpy(decay: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    states: np.ndarray = linear_scan(decay, inputs, reverse=True)
    return states


def of_jax(decay: "jax.Array", state: "jax.Array") -> "jax.Array":
    states: jax.Array = linear_scan(decay, decay, initial_state=state)
    return states


def of_torch(z: "torch.Tensor", f: "torch.Tensor") -> "tuple[torch.Tensor, ...]":
    outputs, last = f_pool(z, f)
    outputs, last = fo_pool(z, f, f, initial_state=last)
    outputs, last = ifo_pool(z, f, f, f, last)
    return outputs, last


def of_tensorflow(x: "tf.Tensor") -> "tf.Tensor":
    return QRNN(4, window=3, pooling="ifo")(x, training=True)


def of_lists() -> np.ndarray:
    return linear_scan([[[0.5]]], [[[1.0]]])


def in_a_functional_model() -> keras.Model:
    source, target = keras.Input((None, 8)), keras.Input((None, 5))
    layer = QRNN(16, return_state=True, kernel_regularizer="l2", seed=1)
    _, cell, window = layer(source)
    decoded = QRNN(16, return_sequences=True)(target, initial_state=cell, context=cell)
    decoded = Bidirectional(QRNN(16, padding="same"))(decoded, context=cell)
    return keras.Model([source, target], [decoded, window])


def with_attention() -> keras.Model:
    source, target = keras.Input((None, 16)), keras.Input((None, 5))
    layer = AttentionQRNN(16, return_sequences=True, output_kernel_regularizer="l2")
    outputs, attention = layer(target, source, return_attention_scores=True)
    return keras.Model([source, target], [outputs, attention])


def in_sequence(inputs: np.ndarray) -> list[int | None]:
    layer = QRNN(
        units=4,
        activation=keras.activations.relu,
        kernel_initializer=keras.initializers.Orthogonal(),
        bias_initializer=ChronoBias(max_length=200, seed=1),
        stateful=True,
    )
    layer.reset_state()
    gates = layer.compute_gates(inputs)
    shape = layer.compute_output_shape((None, 10, 8))
    return [len(gates), *shape]


def from_another_layer(lstm: keras.layers.LSTM) -> QRNN:
    layer: keras.layers.Layer = from_lstm(lstm, window=3)
    assert isinstance(layer, QRNN)
    return QRNN.from_config(lstm.get_config())


def weights_of_pytorch(layer: QRNN, arrays: dict[str, np.ndarray]) -> list[str]:
    load_torch_weights(layer, arrays)
    load_torch_weights([layer, layer], "model.safetensors", prefix="rnns.")
    return list(torch_state_dict(layer, layout="fastai"))


def in_a_stack(inputs: np.ndarray) -> "tuple[list[QRNN], list[keras.Variable] | None]":
    stack = QRNNStack([8, 4], layers=2, window=[3, 1], dense=True, pooling="ifo")
    encoder = QRNNStack(8, 2, window=(2, 1), return_state=True)
    outputs, *states = encoder(inputs)
    stack(outputs, initial_state=states[::2], mask=None)
    stack.reset_state()
    return stack.qrnns, stack.states


def translated(sentences: list[str]) -> list[str]:
    vocabulary = CharacterVocabulary.build(sentences, min_count=1)
    model = TranslationModel(len(vocabulary), units=8, layers=1, cell="lstm")
    model.build()
    return Translator(model, vocabulary, beam=2).translate(sentences)


def probabilities(texts: list[str]) -> list[float]:
    vocabulary = Vocabulary.build(texts)
    model = SentimentModel(len(vocabulary), units=8, layers=1, max_len=400, cased=True)
    model.build()
    classifier = SentimentClassifier(model, vocabulary, batch_size=8)
    found: list[float] = classifier.probabilities(texts).tolist()
    return found
