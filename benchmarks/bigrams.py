"""A linear model on words and pairs of words: what to compare a sentiment model with.

    python benchmarks/bigrams.py --data_dir aclImdb

Logistic regression of scikit-learn on TF-IDF of words and bigrams. The validation
split, the same as in `examples/train_sentiment.py`, chooses the strength of
regularization.
"""

import numpy as np
from _timing import float_list
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from keras_qrnn.data.imdb import load_reviews
from keras_qrnn.training.command_line import Parser


def main(arguments: list[str] | None = None) -> float:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", choices=("imdb", "sample"), default="imdb")
    parser.add_argument("--data_dir")
    parser.add_argument("--strengths", type=float_list, default="1,3,10,30,100")
    options = parser.parse_args(arguments)
    try:
        reviews = load_reviews(options.dataset, options.data_dir)
    except (ValueError, OSError, ImportError) as error:
        parser.error(str(error))
    vectorizer = TfidfVectorizer(
        ngram_range=(1, 2), min_df=2, sublinear_tf=True, analyzer="word",
        token_pattern=r"\S+", lowercase=False,
    )  # fmt: skip
    train = vectorizer.fit_transform(reviews.train.texts)
    valid, test = (vectorizer.transform(s.texts) for s in (reviews.valid, reviews.test))
    best = None, -1.0
    for strength in options.strengths:
        model = LogisticRegression(C=strength, max_iter=1000)
        model.fit(train, reviews.train.labels)
        accuracy = float(np.mean(model.predict(valid) == reviews.valid.labels))
        print(f"C={strength:g}: valid accuracy {accuracy:.2%}", flush=True)
        if accuracy > best[1]:
            best = model, accuracy
    accuracy = float(np.mean(best[0].predict(test) == reviews.test.labels))
    print(f"test accuracy: {accuracy:.2%} of {len(reviews.test)} reviews")
    return accuracy


if __name__ == "__main__":
    main()
