"""A model of NeMo or Megatron-LM as the training steps read it."""
