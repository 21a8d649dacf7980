"""Micro-batches, optimizer, and the state that a run continues from."""
