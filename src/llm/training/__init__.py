"""The life of a run: setup, preflight checks, training, resuming and the summary."""
