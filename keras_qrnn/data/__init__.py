"""Corpora, vocabulary and batches."""

from keras_qrnn.data.batches import BPTTBatches, EpochBatches
from keras_qrnn.data.characters import CharacterVocabulary
from keras_qrnn.data.corpus import Corpus, fingerprint
from keras_qrnn.data.loading import load_corpus
from keras_qrnn.data.multi30k import Pairs, ParallelText, load_parallel_text
from keras_qrnn.data.pair_batches import PairBatches
from keras_qrnn.data.vocabulary import Vocabulary

__all__ = [
    "BPTTBatches",
    "CharacterVocabulary",
    "Corpus",
    "EpochBatches",
    "PairBatches",
    "Pairs",
    "ParallelText",
    "Vocabulary",
    "fingerprint",
    "load_corpus",
    "load_parallel_text",
]
