from hard_texts import hard_texts  # noqa: F401
