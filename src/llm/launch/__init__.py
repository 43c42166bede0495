"""Processes: the jobs of a sweep, the ranks of a run, the pool of GPUs and shutdown."""
