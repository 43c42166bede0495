"""ROUGE-L: the share of words common to an answer and its reference, in order (Lin 2004, section 3)."""

import re
from collections import defaultdict
from collections.abc import Sequence

WORD = re.compile(r"[^\W_]+")


def rouge_words(text: str) -> list[str]:
    """Return the words of a text: runs of letters and digits of any script, in lower case.

    Words are not stemmed. On ASCII text these are the words of the `rouge-score` package, which splits at other
    letters: there "naïve" is two words, here it is one. Scripts without spaces (Chinese, Thai) give one word per
    run, so separate their words by spaces first.
    """
    return WORD.findall(text.lower())


def common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest common subsequence: the same words in the same order, gaps allowed.

    The textbook's table, one row at a time, with a row stored in the bits of one integer: bit `i` is
    0 where the length grows between the first `i` and `i + 1` words of `first` (Hyyrö 2004, "Bit-parallel
    LCS-length computation revisited").
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
    """Return the F-measure of the longest common subsequence of words.

    Precision is its length over the candidate's words, recall over the reference's; the measure is their
    harmonic mean (Lin's beta is 1).

    Args:
        candidate: the text to score.
        reference: a good answer.

    Returns:
        A value from 0 (nothing in common, or a text without words) to 1 (the same words).
    """
    said, wanted = rouge_words(candidate), rouge_words(reference)
    if not said or not wanted:
        return 0.0
    return 2 * common_subsequence(said, wanted) / (len(said) + len(wanted))
