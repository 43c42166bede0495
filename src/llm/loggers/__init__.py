"""Loggers of metrics: always a CSV file, optionally Weights & Biases and TensorBoard."""
