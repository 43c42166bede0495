"""Finetuning a part of a model: low-rank updates, prefixes, or layers left unfrozen."""
