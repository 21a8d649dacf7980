"""Slurm's commands as a few lines of shell each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class Commands:
    """Stand-ins on the path, and what each was called with."""

    folder: Path

    def set(self, name: str, lines: str) -> None:
        path = self.folder / name
        path.write_text(f"#!/bin/sh\necho {name} \"$@\" >> '{self.folder}/said'\n{lines}\n")
        path.chmod(0o755)

    def show(
        self, *, state: str, number: int = 7, name: str = "r-1", where: str = "", **fields: Any
    ) -> None:
        """What ``scontrol`` says of a job; ``where`` are lines of a cluster's configuration."""
        told = {"Reason": "None", "Restarts": "0", "ExitCode": "0:0", **fields}
        pairs = " ".join(f"{key}={value}" for key, value in told.items())
        tail = "WorkDir=/x JobState=COMPLETED ExitCode=9:9"
        job = f"JobId={number} JobName={name} JobState={state} {pairs} {tail}"
        self.set("scontrol", f"printf '%s\n' '{where}' 'scontrol: show job {number}' '{job}'")

    @property
    def said(self) -> list[str]:
        path = self.folder / "said"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """A cluster that knows no job and takes what is submitted as job 41."""
    made = Commands(tmp_path / "commands")
    made.folder.mkdir()
    monkeypatch.setenv("PATH", f"{made.folder}:/usr/bin:/bin")
    for name in ("sacct", "squeue", "scontrol"):
        made.set(name, "exit 1")
    for name in ("scancel", "srun"):
        made.set(name, "")
    made.set("sbatch", f"env > '{made.folder}/environment'\necho 41")
    return made
