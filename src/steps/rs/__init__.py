"""Align a model by rejection sampling."""
