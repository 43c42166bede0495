"""Our checkpoint format: written whole, with checksums, in one file or in shards, read lazily."""
