"""Commands that hold two artifacts, or two runs, against each other."""
