"""The store of artifacts: committed once, found by ref, checked, and traced."""
