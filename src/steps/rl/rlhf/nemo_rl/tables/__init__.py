"""Every key of NeMo-RL's GRPO and of NeMo-Gym's judge, a table for each version."""
