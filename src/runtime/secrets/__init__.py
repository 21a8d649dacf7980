"""Secrets: which names say it, where they stand in a text, and how none is stored or shown."""
