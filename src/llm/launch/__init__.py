"""Processes: jobs of a sweep, ranks of a run, the pool of GPUs and shutdown."""
