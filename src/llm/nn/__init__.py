"""The parts of a language model. Attention and norms are written out, with a fast kernel beside them."""
