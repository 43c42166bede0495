"""Evaluation: metrics over a whole validation part, comparison of responses with references, and a judge."""
