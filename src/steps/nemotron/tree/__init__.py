"""Any step of a tree in NVIDIA Nemotron's layout; see ``recipe.py``."""
