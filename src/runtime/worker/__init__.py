"""The inside of a run: the process that a launcher starts."""
