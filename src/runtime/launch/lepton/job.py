"""A plan as the JSON that is posted for a Lepton job.

The SDK has types for it; they are not needed to show a job, only to post one. Every field that the
SDK would fill in by itself (empty lists, the time to live) is set here, so that what is shown and
what is posted are the same text.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from nemotron_style.runtime.config.inheritance import merge_tables
from nemotron_style.runtime.launch.bundle import Bundle, fetch_command
from nemotron_style.runtime.run.attempt import ATTEMPT_VARIABLE
from nemotron_style.runtime.run.plan import Plan

LONGEST_NAME = 36
LONGEST_LABEL = 63
HASH_LENGTH = 12
SECONDS_KEPT = 3 * 24 * 3600  # a finished job can still be asked about for so long
LABEL = "nemotron-style"


def build_body(plan: Plan, attempt: int, bundle: Bundle | None) -> dict[str, Any]:
    """The body of ``POST /jobs``, with the digest of itself among its labels.

    The pod fetches a ``bundle`` before anything else. What the profile has in ``custom_spec`` is
    merged in last.
    """
    name = name_job(plan, attempt)
    body: dict[str, Any] = {
        "metadata": {"id": name, "name": name, "labels": label_job(plan, attempt)},
        "spec": merge_tables(build_spec(plan, attempt, bundle), plan.site.get("custom_spec", {})),
    }
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()[:32]  # short enough for a label
    body["metadata"]["labels"][f"{LABEL}.body"] = digest
    return body


def build_spec(plan: Plan, attempt: int, bundle: Bundle | None) -> dict[str, Any]:
    """The job's spec without what the profile adds of its own."""
    site = plan.site
    spec: dict[str, Any] = {
        "resource_shape": site["resource_shape"],
        "container": {"image": plan.image, "command": write_command(plan, bundle)},
        "completions": plan.nodes,
        "parallelism": plan.nodes,
        "max_failure_retry": 0,
        "max_job_failure_retry": 0,
        "envs": [*list_variables(plan, attempt)],
        "mounts": [*list_mounts(plan)],
        "image_pull_secrets": list(site.get("image_pull_secrets", ())),
        "ttl_seconds_after_finished": SECONDS_KEPT,
        "log": {"enable_collection": True, "save_termination_logs": True},
    }
    if plan.nodes > 1:
        spec["intra_job_communication"] = True
    if site.get("shared_memory_mb") is not None:
        spec["shared_memory_size"] = site["shared_memory_mb"]
    if site.get("node_group"):
        spec["affinity"] = {"allowed_dedicated_node_groups": [site["node_group"]]}
    if site.get("node_reservation"):
        spec["reservation_config"] = {"reservation_id": site["node_reservation"]}
    if site.get("priority"):
        spec["queue_config"] = {"priority_class": site["priority"]}
    return spec


def write_command(plan: Plan, bundle: Bundle | None) -> list[str]:
    """The words of the command with which every pod starts."""
    command = shlex.join(["exec", "bash", str(plan.run_dir / "launch.sh")])
    if bundle:
        upload = plan.site["upload"]
        fetch = fetch_command(bundle, upload, python=plan.python, store=plan.store)
        command = f"{fetch} && {command}"
    return ["/bin/bash", "-c", command]


def list_variables(plan: Plan, attempt: int) -> Iterator[dict[str, Any]]:
    """The attempt, the secrets by name, and what fetching the bundle may need.

    ``launch.sh`` exports the profile's environment byte for byte; a cluster may replace ``$(...)``
    in a variable, so what holds a ``$`` is left to the script alone.
    """
    yield {"name": ATTEMPT_VARIABLE, "value": str(attempt)}
    for name in plan.secrets:
        yield {"name": name, "value_from": {"secret_name_ref": name}}
    if not plan.is_seen:
        for name, value in sorted(plan.env.items()):
            if "$" not in value:
                yield {"name": name, "value": value}


def list_mounts(plan: Plan) -> Iterator[dict[str, Any]]:
    """Folders of the node group's volumes, and where they appear in the pod."""
    for mount in plan.mounts:
        options = {"mount_options": {"read_only": True}} if "ro" in mount.options else {}
        place = {"path": mount.source, "from": mount.volume, "mount_path": mount.target}
        yield place | options


def write_body(body: Mapping[str, Any]) -> str:
    """The text of ``lepton.json``: sorted keys, two spaces, one newline at the end."""
    return json.dumps(body, indent=2, sort_keys=True) + "\n"


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
    """Labels by which the job is found in the workspace: step, run and attempt."""
    values = {"step": plan.step.replace("/", "."), "run": plan.run_id, "attempt": str(attempt)}
    labels = {}
    for key, value in values.items():
        allowed = re.sub(r"[^A-Za-z0-9._-]", "-", value)
        # The end of a long value is what tells it from others.
        labels[f"{LABEL}.{key}"] = allowed[-LONGEST_LABEL:].strip("._-")
    return labels
