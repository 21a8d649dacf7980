"""Rejection sampling against a remote reward model."""
