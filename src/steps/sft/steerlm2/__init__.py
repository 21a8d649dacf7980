"""Align a model with attribute labels by SteerLM 2.0."""
