"""GRPO with a generative judge; see ``recipe.py``."""
