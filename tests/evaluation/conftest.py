"""Fixtures for the tests of evaluation."""

from chat_server import stand_in  # noqa: F401
