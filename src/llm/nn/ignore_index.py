"""The target value that losses and metrics ignore."""

# For padding, prompts and tokens that are not masked; torch's cross_entropy has the same default.
IGNORE_INDEX = -100
