"""The commands of `llm`, one file each."""
