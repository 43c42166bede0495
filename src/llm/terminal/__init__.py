"""Terminal input and output: consoles, tables, progress bars, and commands to paste."""
