"""The three tasks with tiny data and models, for tests of what they share."""

import numpy as np

from keras_qrnn.data import Corpus, Vocabulary
from keras_qrnn.data.imdb import Labelled, Reviews
from keras_qrnn.data.multi30k import Pairs, ParallelText
from keras_qrnn.training import TrainingOptions
from keras_qrnn.training.language_model import LanguageModelling
from keras_qrnn.training.sentiment import SentimentAnalysis, SentimentOptions
from keras_qrnn.training.translation import Translation, TranslationOptions

RNG = np.random.default_rng(3)
LINES = [" ".join(RNG.choice(["a", "b", "c", "d"], 7)) for _ in range(15)]
CORPUS = Corpus("tiny", LINES, LINES[:3], LINES[:2])
WORDS = ["ab", "ba", "abc", "cab", "bca", "cb", "bc", "ac", "ca"]
PAIRS = Pairs(WORDS, [word[::-1] for word in WORDS])
LABELLED = Labelled(LINES, np.arange(15) % 2)
REVIEWS = Reviews("tiny", LABELLED, LABELLED, LABELLED)
TEXT = ParallelText("tiny", ("de", "en"), PAIRS, PAIRS)

# All batches of a task have the same shape. The last one of an epoch is not full.
COMMON = {"units": 4, "emb_dim": 4, "layers": 1, "epochs": 2, "save_every": 2}
COMMON |= {"batch_size": 4, "dropout": 0.2, "zoneout": 0.2}


def language_model(**more):
    recipe = {"seq_len": 14, "optimizer": "adamw", "learning_rate": 0.01}
    options = TrainingOptions(**COMMON | recipe | {"weight_average": 0.9} | more)
    return LanguageModelling(CORPUS, Vocabulary.build(CORPUS.train), options)


def sentiment(**more):
    return SentimentAnalysis(REVIEWS, SentimentOptions(**COMMON | more))


def translation(**more):
    options = TranslationOptions(**COMMON | {"length_step": 8} | more)
    return Translation(TEXT, options)


TASKS = {each.__name__: each for each in (language_model, sentiment, translation)}
