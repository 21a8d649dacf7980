"""The launcher of each executor, imported when it is first needed."""

from __future__ import annotations

from functools import cache
from importlib import import_module

from nemotron_style.runtime.launch.base import Launcher

LAUNCHERS = {
    "local": "nemotron_style.runtime.launch.local:LocalLauncher",
    "slurm": "nemotron_style.runtime.launch.slurm.launcher:SlurmLauncher",
    "lepton": "nemotron_style.runtime.launch.lepton.launcher:LeptonLauncher",
}


@cache
def find_launcher(executor: str) -> Launcher:
    """The launcher of an executor; one for the whole process."""
    module, _, name = LAUNCHERS[executor].partition(":")
    launcher: Launcher = getattr(import_module(module), name)()
    return launcher
