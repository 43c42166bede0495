"""Several devices: strategies, and how a model is divided for each."""
