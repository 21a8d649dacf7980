"""The services beside a step, as the step sees them: waited for, and asked to stop.

``launch.sh`` has started each of them in its own folder, ``services/<name>`` of the run, under the
number of the step's attempt. A service tells where it listens in ``endpoint.json`` of that folder.
"""

from __future__ import annotations

import http.client
import time
from contextlib import closing
from urllib.parse import urlsplit

from nemotron_style.runtime.atomic import read_json
from nemotron_style.runtime.errors import Interrupted, Problem, StepFailed
from nemotron_style.runtime.process import is_alive
from nemotron_style.runtime.run.attempt import Attempt
from nemotron_style.runtime.run.plan import Plan
from nemotron_style.runtime.step.context import Stop

ENDPOINT = "endpoint.json"
SECONDS_TO_BEGIN = 120
"""For a process to come up and take its folder."""
SECONDS_TO_LOAD = 3600
"""For a model to be read and set up."""
SECONDS_TO_END = 60
SECONDS_FOR_AN_ANSWER = 10
SECONDS_BETWEEN_LOOKS = 0.05


def await_service(service: Plan, attempt: int, *, stop: Stop) -> str:
    """The URL of a service once ``/health`` answers 200.

    Raises ``StepFailed`` when it ended, never began, or is not ready in time, and ``Interrupted``
    when the step is asked to stop meanwhile.
    """
    seat = _seat(service, attempt)
    begun = time.monotonic()
    while True:
        told = read_json(service.run_dir / ENDPOINT) or {}
        if told.get("attempt") == attempt and is_ready(str(told["url"])):
            return str(told["url"])
        if is_over(seat):
            how = seat.record.get("error") or "it was killed"
            raise _refuse(service, seat, f"ended before it was ready: {how}")
        seconds = SECONDS_TO_LOAD if seat.owner else SECONDS_TO_BEGIN
        if time.monotonic() - begun > seconds:
            raise _refuse(service, seat, f"was not ready within {seconds} s")
        if stop.is_requested():
            raise Interrupted(f"stopped while {service.step} was waited for")
        time.sleep(SECONDS_BETWEEN_LOOKS)


def is_ready(url: str) -> bool:
    """Whether the service at ``url`` answers that it is ready; one that loads says 503."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(
        parts.hostname, parts.port, timeout=SECONDS_FOR_AN_ANSWER
    )
    try:
        with closing(connection):
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False


def end_services(plan: Plan, attempt: int) -> None:
    """Ask the services of a step to stop, and wait until they have, or would take too long."""
    seats = [_seat(service, attempt) for service in plan.services.values()]
    begun = [seat for seat in seats if seat.owner]  # the others see that their parent is gone
    for seat in begun:
        seat.request_stop("the step is over")
    end = time.monotonic() + SECONDS_TO_END
    for seat in begun:
        while not is_over(seat) and time.monotonic() < end:
            time.sleep(SECONDS_BETWEEN_LOOKS)


def is_over(seat: Attempt) -> bool:
    """Whether a service of this machine has begun, and its process is gone."""
    owner = seat.owner
    return owner is not None and not is_alive(owner)


def _seat(service: Plan, attempt: int) -> Attempt:
    return Attempt(service.run_dir / "attempts" / str(attempt))


def _refuse(service: Plan, seat: Attempt, what: str) -> StepFailed:
    return StepFailed(Problem(where=service.step, what=what, fix=f"its log: {seat.log}"))
