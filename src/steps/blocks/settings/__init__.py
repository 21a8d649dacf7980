"""Config sections that several steps share; readable without torch."""
