"""Examples for finetuning: read, formatted by a template, and joined to batches."""
