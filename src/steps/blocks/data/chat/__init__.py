"""Conversations as tokens, in the chat format that belongs to a checkpoint."""
