"""`llm compare DIR…`: put runs beside one another, in a table and a picture."""

from llm.config.point import Point


def main(point: Point) -> None:
    """Compare. What is slow to import waits until there is something to read."""
    from llm.apps.comparing import show

    show(point.config)
