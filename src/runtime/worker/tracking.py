"""Trackers (MLflow, Weights & Biases) that are told about a run while it goes on.

``metrics.jsonl`` is the record and a tracker a view of it: a thread for each of them waits for new
lines and hands them over, so that none holds up the training. ``trackers/<name>.json`` says which
of the tracker's runs is ours, and the last step of each metric that it has. An attempt that goes
on therefore goes on in the same run of the tracker, brings it what it missed, and nothing twice.
What fails is said once; the same is tried once more at the end, and by the next attempt.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemotron_style.runtime.atomic import read_json, write_json
from nemotron_style.runtime.config.model import MLFLOW, TITLES, WANDB, StepConfig
from nemotron_style.runtime.errors import Interrupted
from nemotron_style.runtime.run.folder import TRACKERS
from nemotron_style.runtime.secrets.redact import redact, redact_leaves
from nemotron_style.runtime.step.metrics import parse_lines
from nemotron_style.runtime.store.record import Artifact
from nemotron_style.runtime.validation import flatten
from nemotron_style.runtime.worker.mlflow_client import MlflowClient
from nemotron_style.runtime.worker.outputs import Task
from nemotron_style.runtime.worker.tracked_run import (
    FAILED,
    FINISHED,
    INTERRUPTED,
    Client,
    TrackedRun,
)
from nemotron_style.runtime.worker.wandb_client import WandbClient

SECONDS_TO_END = 60.0
PREFIX = "nemotron_style"
"""Of the tags that are ours: ``nemotron_style.input.data`` is the ref of the input ``data``."""


CLIENTS: Mapping[str, type[MlflowClient] | type[WandbClient]] = {
    MLFLOW: MlflowClient,
    WANDB: WandbClient,
}


@dataclass
class Tracking:
    """All trackers of a run, on the first rank; ``outputs`` are tags of what was committed."""

    feeds: Sequence[Feed] = ()
    outputs: dict[str, str] = field(default_factory=dict)

    def wake(self) -> None:
        """There is a new line of metrics."""
        for feed in self.feeds:
            feed.wake()

    def note_output(self, slot: str, output: Mapping[str, str]) -> None:
        """Tag the run with an artifact that it made."""
        self.outputs |= tag_artifact("output", slot, output["ref"], output["digest"])

    def await_begin(self) -> None:
        """Wait until each tracker has said what it calls our run, or has failed."""
        for feed in self.feeds:
            feed.wake()
            feed.has_begun.wait(SECONDS_TO_END)

    def end(self, status: str) -> None:
        """Hand over what is left, and say how the run ended."""
        for feed in self.feeds:
            feed.end(status, self.outputs)
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
        self._ending: tuple[str, Mapping[str, str]] = FAILED, {}

    def wake(self) -> None:
        """There is more to hand over. The first call starts the thread."""
        if self.ident is None:
            self.start()
        self._awake.set()

    def end(self, status: str, tags: Mapping[str, str]) -> None:
        """No line follows; ``await_end`` waits until the tracker knows."""
        self._ending = status, tags
        self._is_over.set()
        self.wake()

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
            with suppress(Exception):
                self._follow()

    def _follow(self) -> None:
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
        status, tags = self._ending
        self.client.end(status, {**tags, f"{PREFIX}.status": status})
        kept.pop("open", None)
        write_json(self.record, {**kept, "sent": sent})

    def _warn(self, why: str) -> None:
        first = redact(why).strip().splitlines()[0]
        print(
            f"warning: {self.title} is not told about this run any more: {first}; "
            "metrics.jsonl has everything, and a next attempt hands over what is missing",
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
    asked = config.trackers() if task.process.rank == 0 else {}
    run = describe_run(task, inputs)
    tracking = Tracking([Feed(name, CLIENTS[name](one), run) for name, one in asked.items()])
    try:
        yield tracking
    except Interrupted:
        # A rank that fails has the others told to stop.
        tracking.end(FAILED if task.attempt.rank_failure else INTERRUPTED)
        raise
    except BaseException:
        tracking.end(FAILED)
        raise
    tracking.end(FINISHED)


def describe_run(task: Task, inputs: Mapping[str, Artifact]) -> TrackedRun:
    """The run with its compiled config, flattened, and the refs and digests of its inputs."""
    plan = task.plan
    params = {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for key, value in flatten(redact_leaves(plan.config)).items()
    }
    tags = {f"{PREFIX}.run_id": plan.run_id, f"{PREFIX}.step": plan.step}
    for slot, artifact in inputs.items():
        tags |= tag_artifact("input", slot, artifact.ref, artifact.digest)
    return TrackedRun(plan.run_dir, plan.run_id, plan.step, params, tags)


def tag_artifact(side: str, slot: str, ref: str, digest: str) -> dict[str, str]:
    """The tags of an ``input`` or ``output`` of the run."""
    return {f"{PREFIX}.{side}.{slot}": ref, f"{PREFIX}.{side}.{slot}.digest": digest}
