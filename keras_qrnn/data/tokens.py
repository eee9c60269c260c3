"""Words and punctuation of a text: one tokenizer for reviews and language models."""

import re

# In this order: several full stops; "n't" and the end of "isn't"; "'s" and the like;
# a word or a number, up to an "n't"; any other character that is not a blank.
_TOKEN = re.compile(
    r"\.\.+|n't\b|'(?:s|re|ve|ll|d|m)\b|[^\W_]+?(?=n't\b)|[^\W_]+|[^\w\s]|_",
    re.IGNORECASE,
)
_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)


def tokenize(text: str, cased: bool = False) -> list[str]:
    """The words and punctuation marks of `text`, as in GloVe's vocabulary.

    HTML's line breaks are removed. Contractions are cut as in Penn Treebank: "isn't" is
    "is" and "n't", "it's" is "it" and "'s". Two and more full stops are "...". Any
    other punctuation mark is a token of its own. No token holds a blank.

    Args:
        text: any text.
        cased: whether capitals stay as they are.
    """
    text = _BREAK.sub(" ", text).replace("\u2019", "'")
    tokens = _TOKEN.findall(text if cased else text.lower())
    return ["..." if token.startswith("..") else token for token in tokens]
