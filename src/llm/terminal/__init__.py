"""What a person reads and types: consoles, tables, progress bars, commands to paste."""
