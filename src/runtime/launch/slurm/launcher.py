"""Runs as jobs of a Slurm cluster.

The batch script (:mod:`~nemotron_style.runtime.launch.slurm.script`) is what the dry run shows,
and Slurm's own copy is compared with it. Files on the shared disk tell how a job stands; Slurm is
asked for what they do not know yet.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from nemotron_style.runtime.atomic import write_json
from nemotron_style.runtime.errors import Problem, StepFailed
from nemotron_style.runtime.launch.base import (
    JobHandle,
    Request,
    attach,
    begin_attempt,
    record_exit,
    render_files,
    write_script,
)
from nemotron_style.runtime.launch.ray import run_on_ray
from nemotron_style.runtime.launch.slurm.check import find_obstacles
from nemotron_style.runtime.launch.slurm.client import Silent, ask, read_batch_script
from nemotron_style.runtime.launch.slurm.job import plan_job
from nemotron_style.runtime.launch.slurm.script import write_batch_script
from nemotron_style.runtime.launch.slurm.state import (
    describe_unmet,
    find_current,
    find_job,
    follow_log,
    tell_state,
)
from nemotron_style.runtime.launch.slurm.submit import Refused, hand_over
from nemotron_style.runtime.run.plan import Plan
from nemotron_style.runtime.run.state import FAILED, JobState
from nemotron_style.runtime.secrets.names import looks_secret

EXECUTOR = "slurm"
SCRIPT = "job.sbatch"
SBATCH = ("sbatch", "--parsable")
# Slurm's variables would speak before the script's own lines; this one only says which cluster.
KEPT = "SLURM_CONF"


@dataclass(frozen=True)
class SlurmRequest:
    """A plan as a batch script, what it runs on every node, and the command that submits it."""

    plan: Plan
    attempt: int
    files: Mapping[str, str]
    argv: tuple[str, ...]

    def render(self) -> str:
        shown = render_files(self.files, self.argv, run_id=self.plan.run_id)
        needed = [planned.producer[0] for planned in self.plan.inputs if planned.producer]
        if self.plan.detached and needed:
            runs = ", ".join(dict.fromkeys(needed))
            flags = " ".join(write_dependency(["JOB"]))
            shown += f"# with {flags} for each of these that is still to complete: {runs}\n"
        return shown


class SlurmLauncher:
    """Submits with sbatch, by way of submitit."""

    def compile(self, plan: Plan, *, attempt: int = 1) -> SlurmRequest:
        """Raises ``ProfileError`` for what Slurm or Pyxis cannot be told."""
        files = {
            "plan.json": plan.to_json(),
            "launch.sh": write_node_script(plan),
            SCRIPT: write_batch_script(plan_job(plan)),
        }
        argv = (*SBATCH, str(plan.run_dir / SCRIPT), str(attempt))
        return SlurmRequest(plan, attempt, files, argv)

    def check(self, plan: Plan) -> Iterator[Problem]:
        """Programs, paths, and Slurm's opinion of the script."""
        script = self.compile(plan).files[SCRIPT]
        yield from find_obstacles(plan, script, environment=choose_environment(plan, os.environ))

    def submit(self, request: Request, *, after: Sequence[JobHandle] = ()) -> JobHandle:
        """Submit, or take hold of the attempt that lives.

        Raises ``StepFailed`` with sbatch's words when it refuses, and ``ProfileError`` when a
        secret that the profile names is not in the environment.
        """
        plan = request.plan
        attempt = begin_attempt(request)
        if attempt is None:
            return attach(plan)
        try:
            job_id = submit_script(request, after)
        except (ImportError, StepFailed) as error:
            attempt.close(FAILED, error=str(error))
            where, what = f"profile {plan.profile}", f"the job was not submitted: {error}"
            raise StepFailed(Problem(where=where, what=what)) from None
        write_json(attempt.path / "job.json", {"executor": EXECUTOR, "id": job_id})
        return JobHandle(EXECUTOR, plan.record_dir, attempt.number)

    def state(self, handle: JobHandle) -> JobState:
        """From our files, then from Slurm."""
        return tell_state(handle)

    def logs(self, handle: JobHandle, *, node: int = 0) -> Iterator[str]:
        """Text as it is written, across requeues, and "" while nothing is."""
        return follow_log(handle, node=node)

    def cancel(self, handle: JobHandle, *, force: bool = False) -> None:
        """``scancel``: TERM to all processes, KILL after the site's KillWait; ``force``: now.

        Raises ``StepFailed`` when Slurm does not answer.
        """
        attempt = find_current(handle)
        if tell_state(handle).is_final:
            return
        attempt.record_cancel()
        job_id = find_job(attempt)
        if job_id:
            end_job(job_id, force=force)


def write_node_script(plan: Plan) -> str:
    """``launch.sh``, which Slurm starts once on every node."""
    folder = shlex.quote(str(plan.run_dir / "attempts"))
    run: Callable[[str], list[str]] = partial(record_exit, folder=folder)
    if plan.launch == "ray" and plan.nodes > 1:
        units = int(plan.site.get("gpus_per_node") or 1)
        run = run_on_ray(nodes=plan.nodes, units=units, folder=folder)
    return write_script(plan, seat=["NODE_RANK=$SLURM_NODEID"], run=run)


def submit_script(request: Request, after: Sequence[JobHandle]) -> str:
    """Call sbatch, and see that Slurm has the very text; the job's number.

    Raises ``StepFailed`` when it was refused, or came out different.
    """
    waited, failed = describe_unmet(after)
    if failed:
        raise StepFailed(f"it needs other runs: {', '.join(failed)}")
    dependency = write_dependency(waited) if waited else []
    argv = [*SBATCH, *dependency, *request.argv[len(SBATCH) :]]
    text = request.files[SCRIPT]
    job_id = hand_over(text, argv, environment=choose_environment(request.plan, os.environ))
    try:
        kept = read_batch_script(job_id)
    except Silent:
        return job_id  # it took the job and shows it to nobody; there is nothing to compare
    if kept != text:
        end_job(job_id, force=True)
        raise Refused(f"Slurm changed the script of job {job_id}, so it was cancelled")
    return job_id


def write_dependency(job_ids: Sequence[str]) -> list[str]:
    """Start after these have completed; end when one of them never will."""
    return [f"--dependency=afterok:{':'.join(job_ids)}", "--kill-on-invalid-dep=yes"]


def choose_environment(plan: Plan, environment: Mapping[str, str]) -> dict[str, str]:
    """What sbatch takes along: no secrets but those named, nothing that speaks for the script."""
    named = () if "secrets_file" in plan.site else plan.secrets
    return {
        name: value
        for name, value in environment.items()
        if (name == KEPT or not name.startswith(("SBATCH_", "SLURM_")))
        and (name in named or not looks_secret(name))
    }


def end_job(job_id: str, *, force: bool) -> None:
    """``scancel``; one that is over already is no error. Raises ``Silent``."""
    ways = [["--signal=KILL", "--full"], []] if force else [[]]
    for flags in ways:
        try:
            ask(["scancel", *flags, job_id])
        except Silent as error:
            if not any(word in str(error) for word in ("completed", "completing", "Invalid job")):
                raise
