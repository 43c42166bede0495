"""Examples for finetuning: reading, chat templates and batches."""
