"""`llm evaluate`: measure what a run has learned."""

from llm.config.point import Point


def main(point: Point) -> None:
    """Measure. What is slow to import waits until there is something to measure."""
    from llm.apps.evaluating import evaluate

    evaluate(point.config)
