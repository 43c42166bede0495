"""Runs beside one another: a table of what they reached and a picture of how, from their records alone."""

from llm.comparison.table import Table, compare

__all__ = ["Table", "compare"]
