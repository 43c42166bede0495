"""Our checkpoint format: atomic, with checksums, in one file or in shards, read lazily."""
