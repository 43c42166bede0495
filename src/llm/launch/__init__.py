"""Processes: the jobs of a sweep, the ranks of a run, GPUs shared among them, and how they end."""
