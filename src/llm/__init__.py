"""Build, train, finetune and compare large language models from scratch."""

__version__ = "0.1.0"
