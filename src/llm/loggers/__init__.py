"""Where metrics go: a CSV file always, Weights & Biases and TensorBoard by choice."""
