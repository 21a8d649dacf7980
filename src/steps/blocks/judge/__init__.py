"""Generative judges: pairs, prompts, verdicts, rewards."""
