"""Generation of text: sampling, decoding with a cache, stopping, streaming."""
