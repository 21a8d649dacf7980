"""Runs as jobs of a Slurm cluster.

The batch script (:mod:`~nemotron_style.runtime.launch.slurm.script`) is what the dry run shows,
and Slurm's own copy is compared with it. Files on the shared disk say how a job ended; Slurm is
asked for what they do not know yet.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from nemotron_style.runtime.atomic import write_json
from nemotron_style.runtime.errors import Problem, StepFailed
from nemotron_style.runtime.launch.base import (
    JobHandle,
    Request,
    attach,
    begin_attempt,
    handle_of,
)
from nemotron_style.runtime.launch.launch_sh import record_exit, write_script
from nemotron_style.runtime.launch.ray import run_on_ray
from nemotron_style.runtime.launch.slurm import client, state
from nemotron_style.runtime.launch.slurm.check import ask_slurm, find_absent_paths, find_missing
from nemotron_style.runtime.launch.slurm.handle import plan_handle, write_handle
from nemotron_style.runtime.launch.slurm.script import write_batch_script
from nemotron_style.runtime.run.attempt import Attempt
from nemotron_style.runtime.run.plan import Plan
from nemotron_style.runtime.run.state import FAILED, RUNNING, JobState
from nemotron_style.runtime.secrets.names import is_secret_variable
from nemotron_style.runtime.shell_environment import clean_environment

SCRIPT = "job.sbatch"
SBATCH = ("sbatch", "--parsable")
# Devices of this machine, which mean others on a node.
DEVICES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


class SlurmRequest(Request):
    """A plan as a batch script, what it runs on every node, and the command that submits it."""

    def show_command(self) -> str:
        shown = super().show_command()
        needed = [planned.producer[0] for planned in self.plan.inputs if planned.producer]
        if self.plan.detached and needed:
            runs = ", ".join(dict.fromkeys(needed))
            flags = " ".join(write_dependency(["JOB"]))
            shown += f"# with {flags} for each of these that is still to complete: {runs}\n"
        return shown


class SlurmLauncher:
    """Submits with sbatch, and reads states from the run's files and from Slurm."""

    def compile(self, plan: Plan, *, attempt: int = 1) -> SlurmRequest:
        """Raises ``ProfileError`` for values that a batch script or Pyxis cannot hold."""
        # Slurm starts launch.sh once on every node.
        end = run_on_ray if plan.launch == "ray" and plan.nodes > 1 else record_exit
        files = {
            "plan.json": plan.to_json(),
            "launch.sh": write_script(plan, seat="NODE_RANK=$SLURM_NODEID", end=end),
            SCRIPT: write_batch_script(plan),
        }
        argv = (*SBATCH, str(plan.run_dir / SCRIPT), str(attempt))
        return SlurmRequest(plan, attempt, files, argv)

    def check(self, plan: Plan) -> Iterator[Problem]:
        """Programs, paths, and Slurm's opinion of the script."""
        missing = [*find_missing(plan)]
        yield from missing
        yield from find_absent_paths(plan)
        if not missing:
            script = self.compile(plan).files[SCRIPT]
            yield from ask_slurm(plan, script, environment=choose_environment(plan, os.environ))

    def submit(self, request: Request, *, after: Sequence[JobHandle] = ()) -> JobHandle:
        """Submit, or follow the attempt that lives.

        Raises ``StepFailed`` with sbatch's words when it refuses, and ``ProfileError`` when a
        secret that the profile names is not in the environment.
        """
        plan = request.plan
        attempt = begin_attempt(request)
        if attempt is None:
            return attach(plan)
        try:
            submit_request(request, after, attempt)
        except (ImportError, OSError, StepFailed) as error:
            attempt.abandon()  # should there be a job after all, its worker gives way
            attempt.close(FAILED, error=str(error))
            what = f"the job was not submitted: {error}"
            raise StepFailed(Problem(where=plan.where, what=what)) from None
        return handle_of(attempt)

    def state(self, handle: JobHandle) -> JobState:
        """From our files, then from Slurm."""
        return self.states([handle])[0]

    def states(self, handles: Sequence[JobHandle]) -> list[JobState]:
        """The same of many, for one question to Slurm."""
        return state.read_states(handles)

    def logs(self, handle: JobHandle, *, node: int = 0) -> Iterator[str]:
        """Text as it is written, across requeues, and "" while nothing is."""
        return state.follow_log(handle, node=node)

    def cancel(self, handle: JobHandle, *, force: bool = False) -> None:
        """``scancel``: TERM to all processes, KILL after the site's KillWait; ``force``: now.

        The worker of a job of another cluster is asked to stop, or to end, by the run's folder.

        Raises ``StepFailed`` when Slurm does not answer, or a job of another cluster has no worker.
        """
        attempt = state.find_current(handle)
        if self.state(handle).is_final:
            return
        attempt.record_cancel()
        job = state.find_job(attempt)
        if job.doubt:
            request = attempt.request_kill if force else attempt.request_stop
            request("cancelled")
            if attempt.recorded_state != RUNNING:
                fix = "to take it off its queue, type the same command where that cluster is; "
                fix += "if it is gone for certain, --abandon declares the run lost"
                raise StepFailed(Problem(where=handle.run_dir.name, what=job.doubt, fix=fix))
        elif job.id:
            client.cancel_job(job.id, force=force)


def submit_request(request: Request, after: Sequence[JobHandle], attempt: Attempt) -> None:
    """Call sbatch, write down the job's number, and check that Slurm has the very text.

    Raises ``StepFailed`` when the job was refused, or its script came out different.
    """
    waited, failed = state.describe_unmet(after)
    if failed:
        raise StepFailed(f"it needs other runs: {', '.join(failed)}")
    answer = client.Answer()
    with contextlib.suppress(client.SlurmError):  # sbatch will say the same
        answer = client.ask()
    handle = plan_handle(request.plan, answer)
    # Before there is a job: were this machine to die right after, another cluster must not think
    # that there is none.
    write_json(attempt.path / "job.json", write_handle(handle))
    dependency = write_dependency(waited) if waited else []
    argv = [*SBATCH, *dependency, *request.argv[len(SBATCH) :]]
    job_id = client.submit(argv, environment=choose_environment(request.plan, os.environ))
    try:
        write_json(attempt.path / "job.json", write_handle(replace(handle, id=job_id)))
    except BaseException:
        client.cancel_job(job_id, force=True)
        raise
    try:
        kept = client.read_batch_script(job_id)
    except client.SlurmError:
        return  # Slurm took the job and keeps no script; there is nothing to compare
    if kept != request.files[SCRIPT]:
        client.cancel_job(job_id, force=True)
        raise StepFailed(f"Slurm changed the script of job {job_id}, so it was cancelled")


def write_dependency(job_ids: Sequence[str]) -> list[str]:
    """Start after these have completed; end when one of them never will."""
    return [f"--dependency=afterok:{':'.join(job_ids)}", "--kill-on-invalid-dep=yes"]


def choose_environment(plan: Plan, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of sbatch, which it hands on to the job: no secrets but those named."""
    named = () if "secrets_file" in plan.site else plan.secrets
    return {
        name: value
        for name, value in clean_environment(environment).items()
        if name not in DEVICES and (name in named or not is_secret_variable(name))
    }
