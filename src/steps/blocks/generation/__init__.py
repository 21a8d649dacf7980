"""Sampling from a model, in the training process or with vLLM."""
