"""Corpora, vocabulary and batches."""

from keras_qrnn.data.batches import BPTTBatches, EpochBatches
from keras_qrnn.data.characters import CharacterVocabulary
from keras_qrnn.data.corpus import Corpus, fingerprint
from keras_qrnn.data.imdb import Labelled, Reviews, load_reviews
from keras_qrnn.data.multi30k import Pairs, ParallelText, load_parallel_text
from keras_qrnn.data.pair_batches import PairBatches
from keras_qrnn.data.penn_treebank import load_corpus
from keras_qrnn.data.review_batches import ReviewBatches, encode_reviews
from keras_qrnn.data.vocabulary import Vocabulary
from keras_qrnn.data.word_vectors import read_word_vectors

__all__ = [
    "BPTTBatches",
    "CharacterVocabulary",
    "Corpus",
    "EpochBatches",
    "Labelled",
    "PairBatches",
    "Pairs",
    "ParallelText",
    "ReviewBatches",
    "Reviews",
    "Vocabulary",
    "encode_reviews",
    "fingerprint",
    "load_corpus",
    "load_parallel_text",
    "load_reviews",
    "read_word_vectors",
]
