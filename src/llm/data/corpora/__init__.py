"""Text for pretraining: sources, token files and windows."""
