"""``rl/rlhf`` at scale: the loop of NVIDIA NeMo-RL, with the judge in NeMo-Gym."""
