"""`llm generate`: continue prompts with what a run has learned, or choose the best of several answers."""

from llm.config.point import Point


def main(point: Point) -> None:
    """Write. What is slow to import waits until there is something to write."""
    if point.config.reward is None:
        from llm.apps.writing import write

        write(point.config)
    else:
        from llm.apps.choosing import choose

        choose(point.config)
