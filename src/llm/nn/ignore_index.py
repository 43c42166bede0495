"""The target value that losses and metrics ignore."""

# The target of padding, of prompts and, in BERT, of tokens that are not masked. torch has the same default.
IGNORE_INDEX = -100
