"""Where NeMo-RL's own script is, and the command that starts it as it is."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from nemotron_style.runtime.errors import InputError, Problem

HOME_VARIABLE = "NEMO_RL_HOME"
HOME = "/opt/nemo-rl"


def find_home(script: str, environment: Mapping[str, str] = os.environ) -> Path:
    """NeMo-RL's tree: that of its image, or the one that ``NEMO_RL_HOME`` names.

    Raises InputError when the script is not in it.
    """
    home = Path(environment.get(HOME_VARIABLE) or HOME)
    if not (home / script).is_file():
        what, fix = "NeMo-RL is not here", f"run in its image, or set {HOME_VARIABLE} to its tree"
        raise InputError(Problem(where=str(home), key=script, what=what, fix=fix))
    return home


def build_command(home: Path, script: str, config: Path) -> list[str]:
    """The command line: by ``uv run``, as NeMo-RL documents it, where the tree is a uv project."""
    by_uv = (home / "pyproject.toml").is_file() and shutil.which("uv")
    start = ["uv", "run"] if by_uv else [sys.executable]
    return [*start, script, "--config", str(config)]
