"""Align a model by reinforcement learning."""
