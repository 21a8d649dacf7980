"""A Lepton job in small types of our own, and the JSON that is posted for it.

The SDK has types for the same thing; they are not needed to show a job, only to post one. Every
field that the SDK would fill in by itself (empty lists, the time to live) is said here, so that
what is shown and what is posted are the same text.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nemotron_style.runtime.launch.bundle import Bundle, fetch_command
from nemotron_style.runtime.launch.lepton.pod import start_script
from nemotron_style.runtime.run.attempt import ATTEMPT_VARIABLE
from nemotron_style.runtime.run.plan import Plan

LONGEST_NAME = 36
LONGEST_LABEL = 63
HASH_LENGTH = 12
SECONDS_KEPT = 3 * 24 * 3600  # a finished job can still be asked about for so long
LABEL = "nemotron-style"


@dataclass(frozen=True)
class Variable:
    """An environment variable: a value, or the name of a secret that the workspace keeps."""

    name: str
    value: str | None = None
    secret: str | None = None

    def to_json(self) -> dict[str, Any]:
        if self.secret is not None:
            return {"name": self.name, "value_from": {"secret_name_ref": self.secret}}
        return {"name": self.name, "value": self.value}


@dataclass(frozen=True)
class Volume:
    """The directory ``path`` of a node group's volume, seen at ``mount_path`` in the pod."""

    path: str
    volume: str
    mount_path: str
    read_only: bool = False

    def to_json(self) -> dict[str, Any]:
        options = {"mount_options": {"read_only": True}} if self.read_only else {}
        return {"path": self.path, "from": self.volume, "mount_path": self.mount_path, **options}


@dataclass(frozen=True)
class Job:
    """Everything that is posted. ``shared_memory_mb`` is in MiB; ``custom`` is merged in last."""

    name: str
    labels: Mapping[str, str]
    resource_shape: str
    image: str
    command: tuple[str, ...]
    nodes: int = 1
    variables: tuple[Variable, ...] = ()
    volumes: tuple[Volume, ...] = ()
    node_group: str | None = None
    reservation: str | None = None
    priority: str | None = None
    shared_memory_mb: int | None = None
    image_pull_secrets: tuple[str, ...] = ()
    custom: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """The body of ``POST /jobs``, with the digest of itself among its labels."""
        body = {
            "metadata": {"id": self.name, "name": self.name, "labels": dict(self.labels)},
            "spec": merge(self._spec(), self.custom or {}),
        }
        body["metadata"]["labels"][f"{LABEL}.body"] = digest_body(body)
        return body

    def _spec(self) -> dict[str, Any]:
        spec: dict[str, Any] = {
            "resource_shape": self.resource_shape,
            "container": {"image": self.image, "command": list(self.command)},
            "completions": self.nodes,
            "parallelism": self.nodes,
            "max_failure_retry": 0,
            "max_job_failure_retry": 0,
            "envs": [variable.to_json() for variable in self.variables],
            "mounts": [volume.to_json() for volume in self.volumes],
            "image_pull_secrets": list(self.image_pull_secrets),
            "ttl_seconds_after_finished": SECONDS_KEPT,
            "log": {"enable_collection": True, "save_termination_logs": True},
        }
        if self.nodes > 1:
            spec["intra_job_communication"] = True
        if self.shared_memory_mb is not None:
            spec["shared_memory_size"] = self.shared_memory_mb
        if self.node_group:
            spec["affinity"] = {"allowed_dedicated_node_groups": [self.node_group]}
        if self.reservation:
            spec["reservation_config"] = {"reservation_id": self.reservation}
        if self.priority:
            spec["queue_config"] = {"priority_class": self.priority}
        return spec


def make_job(plan: Plan, attempt: int, bundle: Bundle | None) -> Job:
    """A plan as a Lepton job. With a bundle the pod fetches it before anything else."""
    site = plan.site
    command = start_script(plan)
    if bundle:
        fetch = fetch_command(bundle, site["upload"], python=plan.python, store=plan.store)
        command = f"{fetch} && {command}"
    return Job(
        name=name_job(plan, attempt),
        labels=label_job(plan, attempt),
        resource_shape=site["resource_shape"],
        image=str(plan.image),
        command=("/bin/bash", "-c", command),
        nodes=plan.nodes,
        variables=tuple(list_variables(plan, attempt)),
        volumes=tuple(
            Volume(mount.source, str(mount.volume), mount.target, "ro" in mount.options)
            for mount in plan.mounts
        ),
        node_group=site.get("node_group"),
        reservation=site.get("node_reservation"),
        priority=site.get("priority"),
        shared_memory_mb=site.get("shared_memory_mb"),
        image_pull_secrets=tuple(site.get("image_pull_secrets", ())),
        custom=site.get("custom_spec"),
    )


def list_variables(plan: Plan, attempt: int) -> Iterator[Variable]:
    """The attempt, the secrets by name, and what fetching the bundle may need.

    ``launch.sh`` exports the profile's environment byte for byte; a cluster may replace ``$(...)``
    in a variable, so what holds a ``$`` is left to the script alone.
    """
    yield Variable(ATTEMPT_VARIABLE, str(attempt))
    yield from (Variable(name, secret=name) for name in plan.secrets)
    if not is_shared(plan):
        plain = ((name, value) for name, value in sorted(plan.env.items()) if "$" not in value)
        yield from (Variable(name, value) for name, value in plain)


def is_shared(plan: Plan) -> bool:
    """Whether this machine sees the folder that the pod writes to."""
    return "upload" not in plan.site


def merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Tables are merged key by key; anything else of ``top`` stands in place of ``base``'s."""
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        merged[key] = merge(below, value) if both else value  # type: ignore[arg-type]
    return merged


def write_body(body: Mapping[str, Any]) -> str:
    """The text of ``lepton.json``: sorted keys, two spaces, one newline at the end."""
    return json.dumps(body, indent=2, sort_keys=True) + "\n"


def digest_body(body: Mapping[str, Any]) -> str:
    """Tells one body from another; short enough for a label."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def name_job(plan: Plan, attempt: int) -> str:
    """A name within Lepton's rules that no other attempt, run or store has.

    The readable part comes from the step; the hash also covers where the run is kept, because two
    people may run the same thing, and then the ids of their runs are the same.
    """
    whole = "\0".join([plan.records or plan.store, plan.run_id, str(attempt)])
    digest = hashlib.sha256(whole.encode()).hexdigest()[:HASH_LENGTH]
    word = re.sub(r"[^a-z0-9]+", "-", plan.step.lower()).strip("-")
    word = word if word[:1].isalpha() else f"run-{word}"
    stem = word[: LONGEST_NAME - HASH_LENGTH - 1].strip("-")
    return f"{stem}-{digest}"


def label_job(plan: Plan, attempt: int) -> dict[str, str]:
    """What finds the job in the workspace: step, run and attempt."""
    values = {"step": plan.step.replace("/", "."), "run": plan.run_id, "attempt": str(attempt)}
    return {f"{LABEL}.{key}": _fit_label(value) for key, value in values.items()}


def _fit_label(value: str) -> str:
    """The end of a long value, which is what tells it from others."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", value)[-LONGEST_LABEL:].strip("._-")
