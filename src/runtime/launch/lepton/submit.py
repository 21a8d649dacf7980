"""Posting a job so that afterwards it is known whether it exists."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from nemotron_style.runtime.errors import Problem, StepFailed
from nemotron_style.runtime.launch.lepton import client
from nemotron_style.runtime.launch.lepton.job import LABEL

LOOKS_AFTER_DOUBT = 3
SECONDS_BETWEEN_LOOKS = 2.0
SECONDS_OF_CLOCK_SKEW = 600


def post(workspace: client.Workspace, body: Mapping[str, Any], *, begun: float) -> None:
    """Create the job. ``begun`` is when its attempt was (seconds since 1970).

    Raises ``StepFailed`` unless the job is there afterwards.
    """
    name = body["metadata"]["name"]
    try:
        workspace.create(body)
        return
    except client.Unreachable as error:
        fix = "nothing was posted; the same command tries again"
        raise StepFailed(Problem(where=name, what=str(error), fix=fix)) from None
    except (client.Taken, client.Unclear) as error:
        doubt: client.WorkspaceError = error
    except client.WorkspaceError as error:
        raise StepFailed(Problem(where=name, what=f"Lepton refused it: {error}")) from None
    job = find_after_doubt(workspace, name, doubt)
    if job is None:
        fix = "there is no such job now; the same command tries again"
        raise StepFailed(Problem(where=name, what=str(doubt), fix=fix))
    if not is_ours(job, body, begun=begun):
        what = "the workspace has a job of this name already, and it is another one"
        fix = f"look at it: lep job get --id {name}"
        raise StepFailed(Problem(where=name, what=what, fix=fix))


def find_after_doubt(
    workspace: client.Workspace, name: str, doubt: client.WorkspaceError
) -> client.RemoteJob | None:
    """The job of this name, asked for a few times; None when it is certain that there is none.

    Raises ``StepFailed`` when no answer is to be had.
    """
    for remaining in reversed(range(LOOKS_AFTER_DOUBT)):
        try:
            return workspace.find(name)
        except client.Absent:
            return None
        except client.WorkspaceError:
            time.sleep(SECONDS_BETWEEN_LOOKS if remaining else 0)
    what = f"{doubt}; whether the job was made is not known"
    fix = f"its worker would give way; delete it if it is there: lep job remove --id {name}"
    raise StepFailed(Problem(where=name, what=what, fix=fix))


def is_ours(job: client.RemoteJob, body: Mapping[str, Any], *, begun: float) -> bool:
    """Whether it is the job that was just posted, and not an old one of a store that is gone."""
    key = f"{LABEL}.body"
    young = job.created is None or job.created > begun - SECONDS_OF_CLOCK_SKEW
    return young and job.labels.get(key) == body["metadata"]["labels"][key]
