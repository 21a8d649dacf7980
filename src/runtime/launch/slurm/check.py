"""What stands in the way of a Slurm job, found before it is submitted."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from importlib import util
from pathlib import Path

from nemotron_style.runtime.errors import Problem
from nemotron_style.runtime.launch.slurm.client import SlurmError, run_command
from nemotron_style.runtime.run.plan import Plan

PROGRAMS = ("sbatch", "scontrol", "squeue", "scancel")


def find_missing(plan: Plan) -> Iterator[Problem]:
    """Programs and packages that this machine lacks."""
    missing = [name for name in PROGRAMS if not shutil.which(name)]
    if missing:
        what = f"this machine has no {', '.join(missing)}"
        fix = "type the command on a login node, or install Slurm's commands (slurm-client)"
        if plan.site.get("tunnel") == "ssh":
            fix = "type the command on a login node: jobs are not sent through ssh"
        yield Problem(where=plan.where, key="executor", what=what, fix=fix)
    if util.find_spec("submitit") is None:
        what, fix = "submitit is not installed", "pip install 'nemotron-style[slurm]'"
        yield Problem(where=plan.where, key="executor", what=what, fix=fix)


def find_absent_paths(plan: Plan) -> Iterator[Problem]:
    """Images and mounts that this machine should see and does not.

    A path below a folder that this machine does not even have may be a disk of the nodes.
    """
    named = {f"mounts[{index}]": mount.source for index, mount in enumerate(plan.mounts)}
    if plan.image and plan.image.startswith("/"):
        named["image"] = plan.image
    for key, path in named.items():
        top = Path(*Path(path).parts[:2])
        if not Path(path).exists() and top.is_dir():
            what = "there is no such file or directory"
            yield Problem(where=plan.where, key=key, what=what, got=path)


def ask_slurm(plan: Plan, script: str, *, environment: Mapping[str, str]) -> Iterator[Problem]:
    """Ask Slurm whether it would take the job."""
    with tempfile.NamedTemporaryFile("w", suffix=".sbatch", encoding="utf-8") as file:
        file.write(script)
        file.flush()
        try:
            run_command(["sbatch", "--test-only", file.name, "1"], environment=environment)
        except SlurmError as error:
            what = "Slurm would not take this job"
            yield Problem(where=plan.where, what=what, got=str(error))
