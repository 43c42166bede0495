"""`llm export`: write a language model as a folder that Hugging Face's library reads."""

from llm.config.point import Point


def main(point: Point) -> None:
    """Write. What is slow to import waits until there is something to write."""
    from llm.apps.exporting import export

    export(point.config)
