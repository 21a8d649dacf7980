"""Reward models: files, scores, and the client of a remote one."""
