"""Evaluation: metrics over a whole validation part, answers beside references, and a judge."""
