"""The services beside a step, as the step sees them: waited for, and asked to stop.

``launch.sh`` has started each of them in its own folder, ``services/<name>`` of the run, under the
number of the step's attempt. A service writes where it listens to ``endpoint.json`` there.
"""

from __future__ import annotations

import time
from http.client import HTTPException
from urllib.parse import urljoin
from urllib.request import ProxyHandler, build_opener

from nemotron_style.runtime.atomic import read_json
from nemotron_style.runtime.errors import Interrupted, Problem, StepFailed
from nemotron_style.runtime.process import is_alive
from nemotron_style.runtime.run.attempt import Attempt
from nemotron_style.runtime.run.plan import Plan
from nemotron_style.runtime.step.context import Stop

ENDPOINT = "endpoint.json"
SECONDS_TO_BEGIN = 120  # for a process to come up and take its folder
SECONDS_TO_LOAD = 3600  # for a model to be read and set up
SECONDS_TO_END = 60
SECONDS_TO_ANSWER = 10
SECONDS_BETWEEN_LOOKS = 0.05


def await_service(service: Plan, attempt: int, *, stop: Stop) -> str:
    """The URL of a service once ``/health`` answers 200.

    Raises ``StepFailed`` when it ended, never began, or is not ready in time, and ``Interrupted``
    when the step is asked to stop meanwhile.
    """
    folder = _find_attempt(service, attempt)
    begun = time.monotonic()
    while True:
        endpoint = read_json(service.run_dir / ENDPOINT) or {}
        # The endpoint of an earlier attempt may still be there.
        if endpoint.get("attempt") == attempt and is_ready(str(endpoint["url"])):
            return str(endpoint["url"])
        seconds = SECONDS_TO_LOAD if folder.owner else SECONDS_TO_BEGIN
        what = ""
        if is_over(folder):
            what = f"ended before it was ready: {folder.record.get('error') or 'it was killed'}"
        elif time.monotonic() - begun > seconds:
            what = f"was not ready within {seconds} s"
        if what:
            fix = f"its log: {folder.log}"
            raise StepFailed(Problem(where=service.step, what=what, fix=fix))
        if stop.is_requested():
            raise Interrupted(f"stopped while {service.step} was waited for")
        time.sleep(SECONDS_BETWEEN_LOOKS)


def is_ready(url: str) -> bool:
    """Whether the service at ``url`` answers that it is ready; one that loads says 503."""
    opener = build_opener(ProxyHandler({}))  # a proxy of the environment is for other hosts
    try:
        with opener.open(urljoin(url, "/health"), timeout=SECONDS_TO_ANSWER) as answer:
            return bool(answer.status == 200)
    except (OSError, HTTPException):
        return False


def end_services(plan: Plan, attempt: int) -> None:
    """Ask the services of a step to stop, and wait until they have, or would take too long."""
    folders = [_find_attempt(service, attempt) for service in plan.services.values()]
    begun = [folder for folder in folders if folder.owner]  # the others see their parent's end
    for folder in begun:
        folder.request_stop("the step is over")
    end = time.monotonic() + SECONDS_TO_END
    for folder in begun:
        while not is_over(folder) and time.monotonic() < end:
            time.sleep(SECONDS_BETWEEN_LOOKS)


def is_over(folder: Attempt) -> bool:
    """Whether a service of this machine has begun, and its process is gone."""
    owner = folder.owner
    return owner is not None and not is_alive(owner)


def _find_attempt(service: Plan, attempt: int) -> Attempt:
    return Attempt(service.run_dir / "attempts" / str(attempt))
