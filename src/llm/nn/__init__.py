"""The parts of a language model, each written out and each beside its fast kernel."""
