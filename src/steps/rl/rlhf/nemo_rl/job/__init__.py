"""What runs in NeMo-RL's container: prepare, start its script, watch it, collect the result."""
