"""The fixtures of this folder."""

from chat_server import stand_in  # noqa: F401
