"""Corpora, vocabulary and batches."""

from keras_qrnn.data.batches import BPTTBatches, EpochBatches
from keras_qrnn.data.corpus import Corpus, fingerprint
from keras_qrnn.data.loading import load_corpus
from keras_qrnn.data.vocabulary import Vocabulary

__all__ = [
    "BPTTBatches",
    "Corpus",
    "EpochBatches",
    "Vocabulary",
    "fingerprint",
    "load_corpus",
]
