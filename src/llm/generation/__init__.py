"""From logits to text: sampling, decoding with a cache, stopping, streaming."""
