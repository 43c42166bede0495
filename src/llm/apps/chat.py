"""`llm chat`: talk with a model that was trained on conversations."""

from llm.config.point import Point


def main(point: Point) -> None:
    """Talk. What is slow to import waits until there is somebody to talk with."""
    from llm.apps.chatting import chat

    chat(point.config)
