"""A run in a container of this machine: the command for docker or podman, from the plan.

The container shares the machine's network and shared memory, so that processes that train together
meet as they do without it. It shares the process numbers too: the worker that the run's folder
names is the same outside, so it can be watched and signalled from any shell, also when the
engine's client has died; and no process in it is number 1, so signals work without ``--init``.

The store and the work directory appear under their own paths, so that the plan and ``launch.sh``
are the same with a container and without.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import os
import posixpath
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_style.runtime.errors import Problem, ProfileError, raise_all
from nemotron_style.runtime.run.attempt import ATTEMPT_VARIABLE, MARK
from nemotron_style.runtime.run.plan import Plan
from nemotron_style.runtime.shell_environment import (
    ENGINE_HOSTS,
    clean_environment,
    is_remote_engine,
)

ENGINES = ("docker", "podman")
GPUS = {"docker": ("--gpus", "all"), "podman": ("--device", "nvidia.com/gpu=all")}
INSTALL = {
    "docker": "https://docs.docker.com/engine/install",
    "podman": "https://podman.io/docs/installation",
}
PROPAGATION = ("private", "rprivate", "shared", "rshared", "slave", "rslave")
UNQUOTABLE = ',"\n\r'
SECONDS_TO_ANSWER = 60


@dataclass(frozen=True)
class Bind:
    """``source`` of this machine at ``target`` of the container, for the plan's ``key``."""

    source: str
    target: str
    options: tuple[str, ...] = ()
    key: str = ""

    @property
    def is_read_only(self) -> bool:
        return not {"ro", "readonly"}.isdisjoint(self.options)


def choose_engine(plan: Plan) -> str:
    """The profile's engine, else the first of docker and podman that is installed."""
    named = plan.site.get("engine")
    return str(named or next(filter(shutil.which, ENGINES), ENGINES[0]))


def name_container(plan: Plan, attempt: int) -> str:
    """The run, the attempt, and a hash of the store: an engine serves all stores of a machine."""
    home = hashlib.sha256(os.fsencode(os.path.realpath(plan.store))).hexdigest()
    return f"{plan.run_id}-{attempt}-{home[:6]}"


def write_run(plan: Plan, attempt: int) -> tuple[str, ...]:
    """The command that runs ``launch.sh`` in the plan's image.

    Raises ``ProfileError`` for what the engine cannot hold.
    """
    engine = choose_engine(plan)
    raise_all(ProfileError, list(_check_places(plan)))
    argv = [engine, "run", "--rm", "--pull", "never", "--name", name_container(plan, attempt)]
    argv += ["--network", "host", "--ipc", "host", "--pid", "host", *_map_user(engine)]
    if plan.site.get("gpus_per_node"):
        argv += GPUS[engine]
    problems: list[Problem] = []
    for bind in list_binds(plan):
        try:
            argv += write_bind(bind, engine, where=plan.where)
        except ProfileError as error:
            problems += error.problems
    raise_all(ProfileError, problems)
    # By name alone: the values are handed on from the environment of the engine's client.
    secrets = () if "secrets_file" in plan.site else plan.secrets
    for name in (ATTEMPT_VARIABLE, MARK, *secrets):
        argv += ["--env", name]
    assert plan.image is not None
    return (*argv, plan.image, "bash", str(plan.run_dir / "launch.sh"))


def _map_user(engine: str) -> list[str]:
    """Options that make files in the store belong to the user who runs the command."""
    user, group = os.getuid(), os.getgid()
    if user == 0:
        return []
    # The image does not know this user: give it a home to write to, and its name.
    known = ["--env", "HOME=/tmp", "--env", "USER"]
    if engine == "podman":
        return ["--userns", "keep-id", *known]
    return ["--user", f"{user}:{group}", *known]


def list_binds(plan: Plan) -> list[Bind]:
    """The profile's mounts, and those of the run's own folders that they do not cover."""
    mounts = [
        Bind(each.source, each.target, each.options, f"mounts[{at}]")
        for at, each in enumerate(plan.mounts)
    ]
    own: list[Bind] = []
    for bind in sorted(_own_binds(plan), key=lambda bind: Path(bind.target).parts):
        if not any(_covers(other, bind) for other in [*mounts, *own]):
            own.append(bind)
    return [*own, *mounts]


def _own_binds(plan: Plan) -> Iterator[Bind]:
    yield Bind(plan.store, plan.store, key="store")
    if not any(_is_same(mount.target, plan.workdir) for mount in plan.mounts):
        yield Bind(plan.workdir, plan.workdir, key="workdir")
    secrets_file = plan.site.get("secrets_file")
    if secrets_file:
        yield Bind(secrets_file, secrets_file, ("ro",), "secrets_file")


def _covers(other: Bind, bind: Bind) -> bool:
    """Whether ``other`` already shows at ``bind.target`` what ``bind`` would, as writable."""
    if not _is_below(bind.target, other.target):
        return False
    seen = posixpath.join(other.source, posixpath.relpath(bind.target, other.target))
    if os.path.realpath(seen) != os.path.realpath(bind.source):
        return False
    # A link that leads out of the mount leads nowhere in the container.
    inside = _is_below(os.path.realpath(seen), os.path.realpath(other.source))
    return inside and (bind.is_read_only or not other.is_read_only)


def _is_below(path: str, parent: str) -> bool:
    return Path(posixpath.normpath(path)).is_relative_to(posixpath.normpath(parent))


def _is_same(path: str, other: str) -> bool:
    return posixpath.normpath(path) == posixpath.normpath(other)


def write_bind(bind: Bind, engine: str, *, where: str) -> tuple[str, str]:
    """``--volume`` where it can say it, ``--mount`` for a path with a colon.

    Raises ``ProfileError`` for what neither can hold.
    """
    if ":" not in bind.source + bind.target:
        parts = [bind.source, bind.target, ",".join(bind.options)]
        return "--volume", ":".join(parts if bind.options else parts[:2])
    fields = ["type=bind", f"source={bind.source}", f"target={bind.target}"]
    fields += [_as_field(option, bind, where=where) for option in bind.options if option != "rw"]
    if engine == "docker":
        line = io.StringIO()
        csv.writer(line, lineterminator="").writerow(fields)
        return "--mount", line.getvalue()
    bad = sorted({letter for field in fields for letter in field if letter in UNQUOTABLE})
    if bad:
        letters = ", ".join(map(repr, bad))
        what = f"podman cannot mount a path that holds a colon and also {letters}"
        fix = "rename it, or reach it by a link"
        got = f"{bind.source} at {bind.target}"
        raise ProfileError(Problem(where=where, key=bind.key, what=what, got=repr(got), fix=fix))
    return "--mount", ",".join(fields)


def _as_field(option: str, bind: Bind, *, where: str) -> str:
    if option in ("ro", "readonly"):
        return "readonly"
    if option in PROPAGATION:
        return f"bind-propagation={option}"
    what = "cannot be said of a path with a colon"
    allowed = ", ".join(["ro", *PROPAGATION])
    raise ProfileError(Problem(where=where, key=bind.key, what=what, got=option, allowed=allowed))


def _check_places(plan: Plan) -> Iterator[Problem]:
    if plan.image and plan.image.startswith("-"):
        yield Problem(
            where=plan.where, key="image", what="cannot begin with a dash", got=plan.image
        )
    for key, path in (("workdir", plan.workdir), ("store", plan.store)):
        if _is_same(path, "/"):
            what = f"is the root directory, which would hide the image {plan.image}"
            yield Problem(where=plan.where, key=key, what=what, fix="work in a directory below it")
    for at, mount in enumerate(plan.mounts):
        key = f"mounts[{at}]"
        if mount.volume is not None:
            what = "only Lepton has volumes to mount from"
            yield Problem(where=plan.where, key=key, what=what, got=mount.volume)
        ours = Bind(plan.store, plan.store)
        theirs = Bind(mount.source, mount.target, mount.options)
        if _is_same(mount.target, plan.store) and not _covers(theirs, ours):
            what = f"the store {plan.store} must be there itself, writable"
            yield Problem(
                where=plan.where, key=key, what=what, got=f"{mount.source}:{mount.target}"
            )


def check_container(plan: Plan) -> Iterator[Problem]:
    """What is missing of the mounts, the engine and the image."""
    where, engine = plan.where, choose_engine(plan)
    for name in ENGINE_HOSTS:
        address = os.environ.get(name, "")
        if is_remote_engine(address):
            what = (
                f"${name} names an engine of another machine, and the local executor has this one"
            )
            fix = f"unset {name}, or use a profile of a cluster"
            yield Problem(where=where, key="engine", what=what, got=address, fix=fix)
    for at, mount in enumerate(plan.mounts):
        if not os.path.exists(mount.source):
            what = "there is no such file or directory"
            yield Problem(where=where, key=f"mounts[{at}]", what=what, got=mount.source)
    if shutil.which(engine) is None:
        named = plan.site.get("engine")
        what = f"{engine} is not installed" if named else "neither docker nor podman is installed"
        yield Problem(where=where, key="engine", what=what, fix=f"see {INSTALL[engine]}")
        return
    command = [engine, "image", "inspect", str(plan.image)]
    try:
        done = _call(command)
    except (OSError, subprocess.SubprocessError) as error:
        yield Problem(where=where, key="engine", what=f"{engine} does not answer: {error}")
        return
    if done.returncode == 0:
        return
    message = done.stderr.strip()
    if any(words in message.lower() for words in ("no such image", "image not known")):
        fix = shlex.join([engine, "pull", str(plan.image)])
        what = f"{engine} does not have it"
        yield Problem(where=where, key="image", what=what, got=str(plan.image), fix=fix)
    else:
        *_, last = message.splitlines() or [f"exit code {done.returncode}"]
        yield Problem(where=where, key="engine", what=f"{engine} does not answer: {last}")


def kill_container(job: Mapping[str, Any]) -> bool:
    """SIGKILL for everything in the container of a ``job.json``; False where there is none."""
    if "engine" not in job:
        return False
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return _call([str(job["engine"]), "kill", str(job["id"])]).returncode == 0
    return False


def _call(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        env=clean_environment(os.environ),
        capture_output=True,
        text=True,
        errors="replace",
        timeout=SECONDS_TO_ANSWER,
        check=False,
    )
