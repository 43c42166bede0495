"""A reward for responses of a certain length."""

from collections.abc import Sequence


def length(
    prompts: Sequence[str], responses: Sequence[str], references: Sequence[str], *, words: int
) -> list[float]:
    """Return max(0, 1 - |n - words| / words) for each response of n words.

    Args:
        prompts: ignored.
        responses: the texts to score.
        references: ignored.
        words: desired number of words.

    Raises:
        ValueError: `words` is less than 1.
    """
    if words < 1:
        raise ValueError(f"words={words}: is too small; use 1 or more")
    lengths = [len(response.split()) for response in responses]
    return [max(0.0, 1 - abs(own - words) / words) for own in lengths]
