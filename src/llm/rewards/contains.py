"""A reward for a text that stands in the response."""

from collections.abc import Sequence


def contains(
    prompts: Sequence[str], responses: Sequence[str], references: Sequence[str], *, text: str
) -> list[float]:
    """1 for each response that contains `text`, 0 for the others.

    Args:
        prompts: not looked at.
        responses: what is scored.
        references: not looked at.
        text: what is looked for, in upper or lower case.

    Raises:
        ValueError: the text is empty, and stands in everything.
    """
    if not text:
        raise ValueError(
            "text: is empty, and every response contains that; give the text to look for"
        )
    return [float(text.lower() in response.lower()) for response in responses]
