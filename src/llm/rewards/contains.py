"""A reward for responses that contain a text."""

from collections.abc import Sequence


def contains(
    prompts: Sequence[str], responses: Sequence[str], references: Sequence[str], *, text: str
) -> list[float]:
    """Return 1 for each response that contains `text`, 0 for the others.

    Args:
        prompts: ignored.
        responses: the texts to score.
        references: ignored.
        text: the text to look for, ignoring case.

    Raises:
        ValueError: the text is empty: every response contains it.
    """
    if not text:
        raise ValueError(
            "text: is empty, and every response contains that; give the text to look for"
        )
    return [float(text.lower() in response.lower()) for response in responses]
