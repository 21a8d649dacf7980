"""Runs as batch jobs on DGX Cloud Lepton."""
