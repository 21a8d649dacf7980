"""Runs where the Lepton SDK is installed: does what lines of JSON ask for, and answers in lines."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from nemotron_style.runtime.launch.base import JobHandle
from nemotron_style.runtime.launch.lepton.client import connect
from nemotron_style.runtime.launch.lepton.launcher import LeptonLauncher
from nemotron_style.runtime.run.plan import parse_plan

seconds = 60.0  # to wait for an answer; main() has it from the line


def launcher() -> LeptonLauncher:
    return LeptonLauncher(connect=lambda: connect(seconds=seconds))


def submit(plan: str, attempt: int = 1) -> str:
    request = launcher().compile(parse_plan(plan, where="plan"), attempt=attempt)
    launcher().submit(request)
    return request.name


def state(run_dir: str, attempt: int = 1) -> Any:
    return launcher().state(JobHandle("lepton", Path(run_dir), attempt))


def cancel(run_dir: str, attempt: int = 1, force: bool = False) -> None:
    launcher().cancel(JobHandle("lepton", Path(run_dir), attempt), force=force)


def logs(run_dir: str, attempt: int = 1) -> str:
    return "".join(launcher().logs(JobHandle("lepton", Path(run_dir), attempt)))


def check(plan: str) -> list[str]:
    return [str(problem) for problem in launcher().check(parse_plan(plan, where="plan"))]


def serialise(body: dict[str, Any]) -> Any:
    """What the SDK would post for a body."""
    from leptonai.api.v2.client import APIClient
    from leptonai.api.v2.job_validation import validate_job_create
    from leptonai.api.v2.types.job import LeptonJob

    job = LeptonJob(**body)
    validate_job_create(job)
    return APIClient().job.safe_json(job)


def rules() -> dict[str, Any]:
    """The SDK's own tables and types, to compare ours with."""
    from leptonai.api.v2 import job_validation
    from leptonai.api.v2.types import affinity, common, deployment, job
    from leptonai.config import LEPTON_RESERVED_ENV_NAMES

    types = {
        "": job.LeptonJobUserSpec,
        "affinity": affinity.LeptonResourceAffinity,
        "container": deployment.LeptonContainer,
        "log": deployment.LeptonLog,
        "metrics": deployment.LeptonMetrics,
        "queue_config": deployment.QueueConfig,
        "reservation_config": deployment.ReservationConfig,
        "segment_config": job.LeptonJobSegmentConfig,
        "time_schedule": job.LeptonJobTimeSchedule,
        "user_security_context": common.LeptonUserSecurityContext,
    }
    return {
        "paths": sorted(job_validation.LEPTON_RESERVED_MOUNT_PATHS),
        "variables": sorted(LEPTON_RESERVED_ENV_NAMES),
        "longest_name": job_validation.MAX_JOB_NAME_LENGTH,
        "fields": {name: sorted(kind.model_fields) for name, kind in types.items()},
        "states": sorted(state.value for state in job.LeptonJobState),
    }


def ask(call: str, **given: Any) -> Any:
    """A question to the workspace."""
    return getattr(connect(seconds=seconds), call)(**given)


OWN = (submit, state, cancel, logs, check, serialise, rules)


def plain(told: Any) -> Any:
    """As JSON can hold it."""
    if is_dataclass(told) and not isinstance(told, type):
        return plain(asdict(told))
    if isinstance(told, dict):
        return {key: plain(value) for key, value in told.items()}
    if isinstance(told, str | int | float | None):
        return told
    items = [plain(item) for item in told]
    return sorted(items) if isinstance(told, set | frozenset) else items


def main() -> None:
    global seconds
    calls = {call.__name__: call for call in OWN}
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        wish = json.loads(line)
        call, given, seconds = wish["call"], wish["given"], wish["seconds"]
        try:
            told = calls[call](**given) if call in calls else ask(call, **given)
            answer = {"told": plain(told)}
        except Exception as error:
            answer = {"error": type(error).__name__, "text": str(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
