"""Launchers: this machine, a container, Slurm, Lepton."""
