"""A reward for responses of a certain form."""

import re
from collections.abc import Sequence


def matches(
    prompts: Sequence[str], responses: Sequence[str], references: Sequence[str], *, pattern: str
) -> list[float]:
    """1 for each response that the whole pattern matches, 0 for the others.

    Args:
        prompts: not looked at.
        responses: what is scored; white space around them does not count.
        references: not looked at.
        pattern: a regular expression, such as `[A-Z].*[.]`, a sentence; a dot matches line ends too.

    Raises:
        ValueError: the pattern is not a regular expression.
    """
    try:
        compiled = re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise ValueError(f"pattern: {pattern!r} is not a regular expression ({error})") from None
    return [float(compiled.fullmatch(response.strip()) is not None) for response in responses]
