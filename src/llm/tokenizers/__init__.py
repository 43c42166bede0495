"""Tokenizers: text to token ids and back, by bytes, characters, words or subwords."""
