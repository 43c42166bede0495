"""How well it is learned: metrics over a whole validation part."""
