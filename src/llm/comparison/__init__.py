"""Comparison of runs: a table of their metrics and a picture of their losses, read from their records alone."""

from llm.comparison.table import Table, compare

__all__ = ["Table", "compare"]
