"""A reward for responses of a certain length."""

from collections.abc import Sequence


def length(
    prompts: Sequence[str], responses: Sequence[str], references: Sequence[str], *, words: int
) -> list[float]:
    """1 for a response of just so many words, less by 1 / words for each word more or fewer, at least 0.

    Args:
        prompts: not looked at.
        responses: what is scored.
        references: not looked at.
        words: how many are wanted.

    Raises:
        ValueError: fewer than 1 word is wanted.
    """
    if words < 1:
        raise ValueError(f"words={words}: give 1 or more")
    lengths = [len(response.split()) for response in responses]
    return [max(0.0, 1 - abs(own - words) / words) for own in lengths]
