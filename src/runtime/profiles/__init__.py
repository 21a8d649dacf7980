"""Profiles: where a run takes place."""
