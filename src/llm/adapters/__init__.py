"""Finetuning a part of a model: low-rank updates, prefixes, or unfrozen layers."""
