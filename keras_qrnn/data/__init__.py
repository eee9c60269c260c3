"""Corpora, vocabulary and batches for word-level language models."""

from keras_qrnn.data.batches import BPTTBatches
from keras_qrnn.data.corpus import Corpus, fingerprint
from keras_qrnn.data.loading import load_corpus
from keras_qrnn.data.vocabulary import Vocabulary

__all__ = ["BPTTBatches", "Corpus", "Vocabulary", "fingerprint", "load_corpus"]
