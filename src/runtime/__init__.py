"""Compile, render, submit and commit steps. Imports nothing from ``nemotron_style.steps``."""
