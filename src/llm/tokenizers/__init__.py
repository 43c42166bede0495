"""Between text and token ids: bytes, characters, words and byte-pair encoding."""
