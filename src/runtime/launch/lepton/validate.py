"""Everything that Lepton would refuse, found before anything is posted.

The rules are those of the SDK's own check of a job (``leptonai`` 0.47) and of what can be held in
a command line; a test compares the tables with the SDK's types.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from nemotron_style.runtime.errors import Problem, suggest
from nemotron_style.runtime.run.plan import Plan, PlannedMount

LONGEST_ARGUMENT = 131_072  # bytes of one argument or variable, with its closing zero (Linux)

RESERVED_PATHS = frozenset(
    (
        *("/", "/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/media", "/opt", "/proc"),
        *("/run", "/sbin", "/srv", "/sys", "/usr", "/usr/bin", "/usr/lib", "/usr/local"),
        *("/usr/sbin", "/var", "/sys/fs/cgroup", "/sys/kernel/security", "/proc/sys"),
        "/proc/bus",
    )
)
RESERVED_VARIABLES = frozenset(
    (
        *("LEPTON_WORKSPACE_ID", "LEPTON_DEPLOYMENT_NAME", "LEPTON_JOB_NAME"),
        *("LEPTON_RESOURCE_ACCELERATOR_TYPE", "LEPTON_WORKSPACE_ORIGIN_URL"),
    )
)
PRIORITIES = (
    *("low-1000", "low-2000", "low-3000", "mid-4000", "mid-5000", "mid-6000"),
    *("high-7000", "high-8000", "high-9000"),
)
# What a profile may add to a job's spec by custom_spec; None: the whole value is its own.
CUSTOM: Mapping[str, tuple[str, ...] | None] = {
    "affinity": ("allowed_providers", "allowed_nodes_in_node_group"),
    "container": ("ports",),
    "log": ("enable_collection", "save_termination_logs"),
    "metrics": ("disable_pulling_from_replica",),
    "queue_config": ("can_be_preempted", "can_preempt"),
    "reservation_config": ("allow_burst_to_other_reservations",),
    "segment_config": ("count_per_segment",),
    "storage_attachments": None,
    "time_schedule": ("start_at",),
    "ttl_seconds_after_finished": None,
    "user_security_context": ("no_specific_user", "privileged"),
}
# Fields of a job's spec that another key of the profile, or the step, sets.
OWN: Mapping[str, str] = {
    "affinity.allowed_dedicated_node_groups": "node_group",
    "completions": "nodes",
    "container.command": "the step",
    "container.image": "image",
    "envs": "env and secrets",
    "image_pull_secrets": "image_pull_secrets",
    "intra_job_communication": "nodes",
    "max_failure_retry": "nothing; the next same command starts another attempt",
    "max_job_failure_retry": "nothing; the next same command starts another attempt",
    "mounts": "mounts",
    "parallelism": "nodes",
    "queue_config.priority_class": "priority",
    "reservation_config.reservation_id": "node_reservation",
    "resource_shape": "resource_shape",
    "shared_memory_size": "shared_memory_mb",
    "stopped": "`runs cancel`",
}

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_VOLUME = re.compile(r"node-local|node-[^:\s][^:]*:\s*[^:\s][^:]*|(?!node-).+")


def check_plan(plan: Plan) -> Iterator[Problem]:
    """Every problem that keeps a plan from being a Lepton job."""
    for problem in (
        *check_needs(plan),
        *check_words(plan),
        *check_mounts(plan.mounts),
        *check_places(plan),
        *check_variables(plan),
        *check_custom(plan.site.get("custom_spec", {})),
    ):
        yield replace(problem, where=plan.where)


def check_needs(plan: Plan) -> Iterator[Problem]:
    """Keys that a Lepton job needs, and values that it cannot have."""
    site = plan.site
    if not plan.image:
        fix = 'write image = "registry/name:tag" in the profile'
        yield Problem(key="image", what="a Lepton job needs a container image", fix=fix)
    if not site.get("resource_shape"):
        fix = 'for instance resource_shape = "gpu.8xh100-80gb"'
        yield Problem(key="resource_shape", what="a Lepton job needs one", fix=fix)
    if site.get("max_requeues", 0) > 0:
        what = "Lepton does not put a job back into the queue"
        fix = "leave it out; the next same command goes on from the last checkpoint"
        yield Problem(key="max_requeues", what=what, got=str(site["max_requeues"]), fix=fix)
    if site.get("priority") not in (None, *PRIORITIES):
        what, got = "is no priority of Lepton", repr(site["priority"])
        yield Problem(key="priority", what=what, got=got, allowed=", ".join(PRIORITIES))
    for key in ("priority", "node_reservation"):
        if site.get(key) and not site.get("node_group"):
            yield Problem(key=key, what="needs a node_group, to which it belongs")


def check_words(plan: Plan) -> Iterator[Problem]:
    """Names in which a line break or another control character can only be a mistake."""
    names = ("resource_shape", "node_group", "node_reservation", "upload")
    words = {"image": plan.image, **{name: plan.site.get(name) for name in names}}
    pulls = plan.site.get("image_pull_secrets", ())
    words |= {f"image_pull_secrets[{number}]": word for number, word in enumerate(pulls)}
    for number, mount in enumerate(plan.mounts):
        words |= {f"mounts[{number}].path": mount.source, f"mounts[{number}].from": mount.volume}
        words |= {f"mounts[{number}].mount_path": mount.target}
    for key, word in words.items():
        if word and _CONTROL.search(word):
            yield Problem(
                key=key, what="holds a line break or another control character", got=repr(word)
            )
    for key in ("image", "resource_shape", "node_group", "node_reservation"):
        if words[key] and words[key] != str(words[key]).strip():
            yield Problem(key=key, what="begins or ends with a space", got=repr(words[key]))


def check_mounts(mounts: tuple[PlannedMount, ...]) -> Iterator[Problem]:
    """Mounts must be absolute, of a named volume, and each to a path of its own.

    Lepton refuses paths that the system in the image needs.
    """
    seen: dict[str, int] = {}
    for number, mount in enumerate(mounts):
        key = f"mounts[{number}]"
        yield from _check_mount(mount, key)
        target = normalise(mount.target)
        if target in seen:
            what = f"mounts to the same path as mounts[{seen[target]}]"
            yield Problem(key=key, what=what, got=mount.target)
        seen.setdefault(target, number)


def _check_mount(mount: PlannedMount, key: str) -> Iterator[Problem]:
    for name, path in (("path", mount.source), ("mount_path", mount.target)):
        if not path.startswith("/"):
            yield Problem(key=f"{key}.{name}", what="must be an absolute path", got=repr(path))
    if normalise(mount.target) in RESERVED_PATHS:
        what = "is a path that the system in the image needs, and Lepton refuses it"
        yield Problem(key=f"{key}.mount_path", what=what, got=repr(mount.target))
    if not mount.volume:
        what, fix = "names no volume", 'add from = "node-nfs:NAME", or "node-local"'
        yield Problem(key=f"{key}.from", what=what, fix=fix)
    elif not _VOLUME.fullmatch(mount.volume):
        allowed = "node-local, or node-<type>:<name>"
        yield Problem(
            key=f"{key}.from", what="is no volume", got=repr(mount.volume), allowed=allowed
        )
    strange = [option for option in mount.options if option not in ("ro", "rw")]
    if strange:
        got = ", ".join(strange)
        yield Problem(
            key=f"{key}.options", what="Lepton has no such option", got=got, allowed="ro, rw"
        )


def check_places(plan: Plan) -> Iterator[Problem]:
    """The store must outlive the pod, so it lies on a mount; code comes by mount or by upload."""
    if not is_mounted(plan.store, plan):
        key = "remote_store" if plan.records else "scratch" if plan.root else "store"
        targets = ", ".join(mount.target for mount in plan.mounts) or "there is no mount"
        what = "is not on a mount: what the job makes would end with its pod"
        yield Problem(key=key, what=what, got=repr(plan.store), allowed=f"below {targets}")
    if plan.site.get("upload") and not plan.records:
        what = "an uploaded job keeps its results where this machine does not see them"
        fix = "name that place, below a mount: remote_store = ..."
        yield Problem(key="remote_store", what=what, fix=fix)
    for key, path in (("store", plan.store), ("upload", plan.site.get("upload", ""))):
        if "$" in path:
            what = "holds a $, which the cluster may replace in a job's command"
            yield Problem(key=key, what=what, got=repr(path))


def check_variables(plan: Plan) -> Iterator[Problem]:
    """Variables whose name Lepton reserves, or whose value is too long for a process."""
    for name in sorted({*plan.env, *plan.secrets} & RESERVED_VARIABLES):
        key = "env" if name in plan.env else "secrets"
        yield Problem(key=f"{key}.{name}", what="is a name that Lepton keeps for itself")
    for name, value in plan.env.items():
        size = len(f"{name}={value}\0".encode(errors="surrogateescape"))
        if size > LONGEST_ARGUMENT:
            what = f"is {size} bytes long with its name, and {LONGEST_ARGUMENT} is the limit"
            yield Problem(key=f"env.{name}", what=what, fix="put it into a file on a mount")


def check_custom(spec: Mapping[str, Any]) -> Iterator[Problem]:
    """``custom_spec`` may hold only keys that Lepton knows and that nothing else sets."""
    for key, value in spec.items():
        own = {name.partition(".")[2] for name in OWN if name.startswith(f"{key}.")}
        if key in OWN:
            yield _owned(key)
        elif key not in CUSTOM:
            fix = suggest(key, CUSTOM)
            yield Problem(key=f"custom_spec.{key}", what="is not a key of Lepton's jobs", fix=fix)
        elif isinstance(value, Mapping) and CUSTOM[key] is not None:
            known = CUSTOM[key] or ()
            yield from (_owned(f"{key}.{name}") for name in value if name in own)
            for name in [name for name in value if name not in own and name not in known]:
                what = f"is not a key of {key}"
                full = f"custom_spec.{key}.{name}"
                yield Problem(key=full, what=what, fix=suggest(name, known))
        elif CUSTOM[key] is not None:
            allowed = ", ".join(CUSTOM[key] or ())
            yield Problem(key=f"custom_spec.{key}", what="must be a table", allowed=allowed)


def _owned(key: str) -> Problem:
    return Problem(key=f"custom_spec.{key}", what=f"is set by {OWN[key]}, and by nothing else")


def check_command(words: Sequence[str]) -> Iterator[Problem]:
    """A word of the command that is longer than the system allows."""
    for word in words:
        size = len(word.encode(errors="surrogateescape")) + 1
        if size > LONGEST_ARGUMENT:
            what = f"the command is {size} bytes long, and {LONGEST_ARGUMENT} is the limit"
            yield Problem(what=what)


def normalise(path: str) -> str:
    """One spelling for each path: no ``..``, no doubled or closing slash."""
    return "/" + posixpath.normpath(path).lstrip("/")


def is_mounted(path: str, plan: Plan) -> bool:
    """Whether ``path`` of the pod lies on one of its mounts."""
    targets = (normalise(mount.target) for mount in plan.mounts)
    return any(f"{normalise(path)}/".startswith(f"{target}/") for target in targets)
