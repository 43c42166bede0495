"""From text to batches: sources, token files, windows, data modules."""
