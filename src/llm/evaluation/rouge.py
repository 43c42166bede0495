"""ROUGE-L: the longest common subsequence of a response and its reference (Lin 2004, section 3)."""

import re
from collections import defaultdict
from collections.abc import Sequence

WORD = re.compile(r"[^\W_]+")


def rouge_words(text: str) -> list[str]:
    """Return the words of a text: runs of letters and digits of any script, in lower case, not stemmed.

    On ASCII text they equal those of the `rouge-score` package, which splits "naïve" in two. Scripts without spaces
    (Chinese, Thai) give one word per run, so separate their words by spaces first.
    """
    return WORD.findall(text.lower())


def common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest common subsequence: the same words in the same order, gaps allowed.

    Computes the textbook's table row by row, each in the bits of one integer: bit `i` is 0 if the length grows from the
    first `i` to the first `i + 1` words of `first` (Hyyrö 2004, "Bit-parallel LCS-length computation revisited").
    """
    positions: defaultdict[str, int] = defaultdict(int)
    for index, word in enumerate(first):
        positions[word] |= 1 << index
    whole = (1 << len(first)) - 1
    row = whole
    for word in second:
        matches = row & positions.get(word, 0)
        row = ((row + matches) | (row - matches)) & whole
    return len(first) - row.bit_count()


def rouge_l(candidate: str, reference: str) -> float:
    """Return the F-measure of the longest common subsequence of words, from 0 to 1 (equal); 0 without words.

    It is the harmonic mean (Lin's beta is 1) of precision, the length over the words of `candidate`, and recall, the
    length over those of `reference`.
    """
    said, wanted = rouge_words(candidate), rouge_words(reference)
    if not said or not wanted:
        return 0.0
    return 2 * common_subsequence(said, wanted) / (len(said) + len(wanted))
