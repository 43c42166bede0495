"""A reward for responses of a certain form."""

import re
from collections.abc import Sequence


def matches(
    prompts: Sequence[str], responses: Sequence[str], references: Sequence[str], *, pattern: str
) -> list[float]:
    """Return 1 for each response that the whole pattern matches, 0 for the others.

    Args:
        prompts: ignored.
        responses: the texts to score; white space around them is ignored.
        references: ignored.
        pattern: a regular expression, such as `[A-Z].*[.]` for a sentence; a dot also matches line ends.

    Raises:
        ValueError: the pattern is not a regular expression.
    """
    try:
        compiled = re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise ValueError(f"pattern: {pattern!r} is not a regular expression ({error})") from None
    return [float(compiled.fullmatch(response.strip()) is not None) for response in responses]
