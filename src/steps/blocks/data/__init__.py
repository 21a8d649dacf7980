"""Rows, conversations, tokens, and the order in which samples are consumed."""
