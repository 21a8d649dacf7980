"""The config of a step of a tree: whatever its YAML files hold."""

from __future__ import annotations

from nemotron_style.runtime.config.model import OpenConfig


class Config(OpenConfig):
    """Keys and types are those of the files in the step's ``config`` folder."""
