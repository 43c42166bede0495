"""Where parameters come from: key maps to and from published formats."""
