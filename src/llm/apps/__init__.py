"""The verbs of the command line, one short file each."""
