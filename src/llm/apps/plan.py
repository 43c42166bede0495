"""`llm plan`: what a model, a budget and some devices would take, before anybody pays for them."""

from llm.apps import train  # registers what train.yaml, on which plan.yaml stands, resolves  # noqa: F401
from llm.config.point import Point


def main(point: Point) -> None:
    """Plan. What is slow to import waits until there is something to plan."""
    from llm.apps.planning import plan

    plan(point.config, point.own)
