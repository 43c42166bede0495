"""`llm classify`: name the class of each line with what a run has learned."""

from llm.config.point import Point


def main(point: Point) -> None:
    """Classify. What is slow to import waits until there is something to read."""
    from llm.apps.classifying import classify

    classify(point.config)
