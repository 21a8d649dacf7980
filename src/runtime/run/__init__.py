"""A run on disk: its plan, its attempts, and the code that it was made with."""
