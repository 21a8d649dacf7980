"""Rows as people have them: every kind of file, and every layout of a row, read as our own."""
