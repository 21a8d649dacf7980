"""Trackers (MLflow, Weights & Biases) that are told about a run while it goes on.

``metrics.jsonl`` is the record and a tracker a view of it: a thread for each of them waits for new
lines and hands them over, so that none holds up the training. ``trackers/<name>.json`` says which
of the tracker's runs is ours, and the last step of each metric that it has. An attempt that goes
on therefore goes on in the same run of the tracker, brings it what it missed, and nothing twice.
What fails is said once; the same is tried once more at the end, and by the next attempt.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemotron_style.runtime.atomic import read_json, write_json
from nemotron_style.runtime.config.model import (
    MLFLOW,
    OPENLINEAGE,
    TITLES,
    WANDB,
    StepConfig,
    Tracker,
)
from nemotron_style.runtime.errors import Interrupted
from nemotron_style.runtime.run.folder import TRACKERS
from nemotron_style.runtime.run.plan import Plan
from nemotron_style.runtime.secrets.redact import redact, redact_leaves
from nemotron_style.runtime.step.metrics import parse_lines
from nemotron_style.runtime.store.record import Artifact
from nemotron_style.runtime.validation import flatten
from nemotron_style.runtime.worker.mlflow_client import MlflowClient
from nemotron_style.runtime.worker.openlineage_client import OpenLineageClient
from nemotron_style.runtime.worker.openlineage_transport import URL_VARIABLE, is_wanted
from nemotron_style.runtime.worker.outputs import Task
from nemotron_style.runtime.worker.tracked_run import (
    ERROR_TAG,
    FAILED,
    FINISHED,
    INTERRUPTED,
    Client,
    TrackedArtifact,
    TrackedRun,
)
from nemotron_style.runtime.worker.wandb_client import WandbClient

SECONDS_TO_END = 60.0
Ending = tuple[str, Mapping[str, str], Mapping[str, TrackedArtifact]]
"""How a run ended, the tags that are known then, and what it made, by slot."""
PREFIX = "nemotron_style"
"""Of the tags that are ours: ``nemotron_style.input.data`` is the ref of the input ``data``."""


CLIENTS: Mapping[str, Callable[[Tracker], Client]] = {
    MLFLOW: MlflowClient,
    WANDB: WandbClient,
    OPENLINEAGE: OpenLineageClient,
}
LONGEST_ERROR = 1000  # characters, of a tag


@dataclass
class Tracking:
    """All trackers of a run, on the first rank, and what they are told when it is over."""

    feeds: Sequence[Feed] = ()
    outputs: dict[str, TrackedArtifact] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def wake(self) -> None:
        """There is a new line of metrics."""
        for feed in self.feeds:
            feed.wake()

    def note_output(self, slot: str, output: Mapping[str, str]) -> None:
        """There is an artifact that the run made."""
        self.outputs[slot] = TrackedArtifact(output["ref"], output["kind"], output["digest"])

    def note_error(self, message: str) -> None:
        """Why it is about to fail."""
        self.tags[ERROR_TAG] = redact(message)[:LONGEST_ERROR]

    def await_begin(self) -> None:
        """Wait until each tracker has said what it calls our run, or has failed."""
        for feed in self.feeds:
            feed.wake()
            feed.has_begun.wait(SECONDS_TO_END)

    def end(self, status: str) -> None:
        """Hand over what is left, and say how the run ended."""
        for feed in self.feeds:
            feed.end(status, self.tags, self.outputs)
        for feed in self.feeds:
            feed.await_end()


class Feed(threading.Thread):
    """Brings one tracker up to ``metrics.jsonl``, again and again until the run has ended."""

    def __init__(self, name: str, client: Client, run: TrackedRun) -> None:
        super().__init__(name=f"tracker-{name}", daemon=True)
        self.title, self.client, self.tracked = TITLES[name], client, run
        self.record = run.folder / TRACKERS / f"{name}.json"
        self._awake, self._is_over = threading.Event(), threading.Event()
        self.has_begun = threading.Event()
        self._ending: Ending = FAILED, {}, {}

    def wake(self) -> None:
        """There is more to hand over. The first call starts the thread."""
        if self.ident is None:
            self.start()
        self._awake.set()

    def end(
        self, status: str, tags: Mapping[str, str], outputs: Mapping[str, TrackedArtifact]
    ) -> None:
        """No line follows; ``await_end`` waits until the tracker knows."""
        self._ending = status, tags, outputs
        self._is_over.set()
        self.wake()

    def catch_up(self, ending: Ending) -> str:
        """Tell of a run that is over, in this thread; where the tracker shows it.

        Whatever the client raises comes through.
        """
        self._ending = ending
        self._is_over.set()
        self._awake.set()
        return self._follow()

    def await_end(self) -> None:
        self.join(SECONDS_TO_END)
        if self.is_alive():
            self._warn("it does not answer")

    def run(self) -> None:
        try:
            self._follow()
        except Exception as error:  # whatever a client of others raises: training goes on
            self._warn(f"{type(error).__name__}: {error}")
            self.has_begun.set()
            self._is_over.wait()
            self._awake.set()  # it may have been at the end that it failed
            with suppress(Exception):
                self._follow()

    def _follow(self) -> str:
        earlier = read_json(self.record) or {}
        ours = {key: earlier.get(key, "") for key in ("id", "uri", "open")}
        known = self.client.begin(self.tracked, ours)
        # Metrics that another run of the tracker has are none of this one.
        sent = dict(earlier.get("sent", {})) if known["id"] == earlier.get("id") else {}
        kept = {name: redact(text) for name, text in known.items()}
        write_json(self.record, {**kept, "sent": sent})
        self.has_begun.set()
        print(f"{self.title}: run {kept['id']}, {kept['where']}", flush=True)
        over, offset = False, 0
        while not over:
            self._awake.wait()
            self._awake.clear()
            over = self._is_over.is_set()  # before the file is read: no line comes after it
            lines, offset = read_lines(self.tracked.folder / "metrics.jsonl", offset)
            if rows := list(take_new(lines, sent)):
                self.client.log(rows)
                if "open" not in kept:  # an open file has them only when it is closed
                    write_json(self.record, {**kept, "sent": sent}, durable=False)
        status, tags, outputs = self._ending
        for slot, made in outputs.items():
            tags = {**tags, **tag_artifact("output", slot, made)}
        self.client.end(status, {**tags, f"{PREFIX}.status": status}, outputs)
        kept.pop("open", None)
        write_json(self.record, {**kept, "sent": sent})
        return str(kept["where"])

    def _warn(self, why: str) -> None:
        first = redact(why).strip().splitlines()[0]
        print(
            f"warning: {self.title} is not told about this run any more: {first}; "
            "the run's folder has everything, and a next attempt, or `nemotron-style runs "
            "publish`, hands over what is missing",
            flush=True,
        )


def read_lines(path: Path, offset: int) -> tuple[list[dict[str, Any]], int]:
    """The whole lines of a ``metrics.jsonl`` from a byte on, and where the next ones begin."""
    if not path.is_file():
        return [], 0
    with open(path, "rb") as file:
        file.seek(offset)
        content = file.read()
    whole = content[: content.rfind(b"\n") + 1]
    return parse_lines(whole.decode("utf-8")), offset + len(whole)


def take_new(
    lines: Sequence[Mapping[str, Any]], sent: dict[str, int]
) -> Iterator[tuple[int, dict[str, float]]]:
    """The metrics of ``lines`` that are not ``sent`` yet, by step; ``sent`` is brought up to date.

    After a crash steps are done again that the tracker knows already; they have the same numbers.
    """
    for line in lines:
        step = int(line["step"])
        # A number that is not finite is text in the file.
        new = {
            name: float(value)
            for name, value in line.items()
            if name != "step" and step > sent.get(name, -1)
        }
        if new:
            sent.update(dict.fromkeys(new, step))
            yield step, new


@contextmanager
def track(task: Task, config: StepConfig, inputs: Mapping[str, Artifact]) -> Iterator[Tracking]:
    """The trackers that ``config`` asks for, told how the run ends; on the first rank alone."""
    asked = list_trackers(config) if task.process.rank == 0 else {}
    run = describe_run(task.plan, inputs)
    tracking = Tracking([Feed(name, CLIENTS[name](one), run) for name, one in asked.items()])
    try:
        yield tracking
    except Interrupted:
        # A rank that fails has the others told to stop.
        failure = task.attempt.rank_failure
        if failure:
            tracking.note_error(str(failure.get("error", "")))
        tracking.end(FAILED if failure else INTERRUPTED)
        raise
    except BaseException as error:
        tracking.note_error(f"{error}" or type(error).__name__)
        tracking.end(FAILED)
        raise
    tracking.end(FINISHED)


def list_trackers(config: StepConfig) -> Mapping[str, Tracker]:
    """The trackers that the config asks for, and OpenLineage where the environment names it."""
    events = {OPENLINEAGE: Tracker(URL_VARIABLE)} if is_wanted(os.environ) else {}
    return {**config.trackers(), **events}


def describe_run(
    plan: Plan, inputs: Mapping[str, Artifact], *, folder: Path | None = None
) -> TrackedRun:
    """The run with its compiled config, flattened, and the artifacts that it reads.

    ``folder`` is its folder where that is not the plan's.
    """
    params = {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for key, value in flatten(redact_leaves(plan.config)).items()
    }
    tags = {f"{PREFIX}.run_id": plan.run_id, f"{PREFIX}.step": plan.step}
    read = {
        slot: TrackedArtifact(artifact.ref, artifact.kind, artifact.digest)
        for slot, artifact in inputs.items()
    }
    for slot, each in read.items():
        tags |= tag_artifact("input", slot, each)
    return TrackedRun(folder or plan.run_dir, plan.run_id, plan.step, params, tags, read)


def tag_artifact(side: str, slot: str, artifact: TrackedArtifact) -> dict[str, str]:
    """The tags of an ``input`` or ``output`` of the run."""
    name = f"{PREFIX}.{side}.{slot}"
    return {name: artifact.ref, f"{name}.digest": artifact.digest}
