"""What breaks a run of NeMo-RL before or in its first step, found before it is launched."""
