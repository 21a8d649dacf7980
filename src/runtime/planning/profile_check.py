"""Whether everything exists that runs with a profile will need, checked without a run."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nemotron_style.runtime.atomic import nearest_folder, unwritable
from nemotron_style.runtime.catalog.catalog import Catalog
from nemotron_style.runtime.catalog.kinds import Kinds
from nemotron_style.runtime.catalog.manifest import Run
from nemotron_style.runtime.config.interpolation import leaves
from nemotron_style.runtime.errors import Problem, StepsError
from nemotron_style.runtime.planning.build import plan_placement, seal_plan
from nemotron_style.runtime.planning.preflight import check_port
from nemotron_style.runtime.planning.request import open_context, open_profile_store
from nemotron_style.runtime.profiles.model import Profile
from nemotron_style.runtime.run.plan import Plan
from nemotron_style.runtime.validation import join_key

PRIVATE = 0o600
# In the shipped profiles, which are examples.
PLACEHOLDER = re.compile(r"\bmy-(account|node-group-id)\b")


@dataclass(frozen=True)
class Check:
    """One thing that was checked: a problem, or the ``finding`` when all is well."""

    name: str
    finding: str = ""
    problem: Problem | None = None

    @property
    def text(self) -> str:
        """The finding or the problem, to be read beside the name."""
        if self.problem is None:
            return self.finding
        named = self.problem.key == self.name
        return str(replace(self.problem, key="") if named else self.problem)

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        result = {"problem": self.problem.as_dict()} if self.problem else {"told": self.finding}
        return {"check": self.name, "ok": self.problem is None, **result}


def check_profile(profile: Profile) -> list[Check]:
    """Every check of a profile; nothing is written or submitted."""
    return [
        check_keys(profile),
        check_store(profile),
        check_workdir(profile),
        *check_placeholders(profile),
        *check_mounts(profile),
        *check_secrets(profile),
        *check_launcher(profile),
    ]


def check_keys(profile: Profile) -> Check:
    """The keys fit, or the profile would not have loaded; those without effect are named."""
    count = len(profile.summary().keys() - {"name", "ignored"})
    idle = f"; without effect here: {', '.join(profile.ignored)}" if profile.ignored else ""
    return Check("keys", f"{count} set, all of them fit{idle}")


def check_placeholders(profile: Profile) -> Iterator[Check]:
    """Every value that still holds a name of the shipped examples instead of the site's own."""
    for path, text in leaves(profile.summary()):
        found = PLACEHOLDER.search(text) if isinstance(text, str) else None
        if found:
            key, what = join_key(path), f"{found[0]} is the placeholder of an example"
            fix = "copy the profile into your env.toml and put in your site's name"
            yield Check(key, problem=Problem(key=key, what=what, got=text, fix=fix))


def check_store(profile: Profile) -> Check:
    """The store can be written, or created."""
    store = open_profile_store(profile)
    root = store.layout.local
    refused = unwritable([root, *store.unwritable([])])
    folder = refused[0] if refused else nearest_folder(root)
    if root != store.root and not refused:
        return Check("store", f"{store.root} can be written", next(iter(store.check_root()), None))
    if not refused:
        return Check("store", f"{root} can be {'written' if folder == root else 'created'}")
    what = f"{folder} {'cannot be written' if folder.is_dir() else 'is not a folder'}"
    fix = "choose another with store = ..., or with $NEMOTRON_STYLE_HOME"
    return Check("store", problem=Problem(key="store", what=what, got=str(root), fix=fix))


def check_workdir(profile: Profile) -> Check:
    """The folder in which steps run exists, as far as this machine can see it."""
    if profile.workdir is None:
        return Check("workdir", "the root of the project")
    path = Path(profile.workdir).absolute()
    if path.is_dir():
        return Check("workdir", str(path))
    if profile.executor == "lepton" or any(path.is_relative_to(m.target) for m in profile.mounts):
        return Check("workdir", f"{path}, as the job sees it")
    what, fix = "there is no such folder", f"make it: mkdir -p {path}"
    return Check("workdir", problem=Problem(key="workdir", what=what, got=str(path), fix=fix))


def check_mounts(profile: Profile) -> Iterator[Check]:
    """The sources of mounts exist; those on Lepton are not visible from this machine."""
    for at, mount in enumerate(profile.mounts):
        name = f"mounts[{at}]"
        if mount.volume or profile.executor == "lepton":
            yield Check(name, f"{mount} of {mount.volume or 'the machine'}, not seen from here")
        elif os.path.exists(mount.source):
            yield Check(name, str(mount))
        else:
            what, fix = f"{mount.source} is not there", "make it, or take the mount out"
            yield Check(name, problem=Problem(key=name, what=what, got=str(mount), fix=fix))


def check_secrets(profile: Profile) -> Iterator[Check]:
    """Every secret has a value where a job will take it from."""
    if profile.executor == "lepton":
        return  # the workspace keeps them, and its launcher checks them there
    path = Path(profile.secrets_file) if profile.secrets_file else None
    if path and (problem := _check_secrets_file(path.expanduser())):
        yield Check("secrets_file", problem=problem)
        return
    known = _read_names(path.expanduser()) if path else set(os.environ)
    source = str(path) if path else "the environment"
    for name in profile.secrets:
        if name in known:
            yield Check("secrets", f"{name} is in {source}")
            continue
        fix = f"add a line {name}=... to it" if path else f"export {name}=..."
        what = f"{name} is not in {source}"
        yield Check("secrets", problem=Problem(key="secrets", what=what, fix=fix))


def _check_secrets_file(path: Path) -> Problem | None:
    if not path.is_file():
        what, fix = f"there is no file {path}", f"make it: install -m 600 /dev/null {path}"
        return Problem(key="secrets_file", what=what, fix=fix)
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode != PRIVATE:
        what, fix = f"{path} can be read by others", f"chmod 600 {path}"
        return Problem(key="secrets_file", what=what, got=f"{mode:03o}", allowed="600", fix=fix)
    return None


def _read_names(path: Path) -> set[str]:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return {line.partition("=")[0] for line in lines if "=" in line}


def check_launcher(profile: Profile) -> Iterator[Check]:
    """The executor accepts a plan that has no step."""
    from nemotron_style.runtime.launch.registry import find_launcher

    try:
        launcher = find_launcher(profile.executor)
        plan = plan_without_step(profile)
        launcher.compile(plan)
        problems = [*check_port(plan), *launcher.check(plan)]
    except StepsError as error:
        problems = list(error.problems)
    if not problems:
        yield Check(profile.executor, "would take a job")
    for problem in problems:
        yield Check(profile.executor, problem=problem)


def plan_without_step(profile: Profile) -> Plan:
    """A plan with every setting of the profile; it is compiled and never submitted."""
    run = Run(entrypoint=f"{__name__}:check_profile", config=f"{__name__}:Check", launch="torchrun")
    identity = {"step": "profiles/check", "config": {}, "inputs": {}, "profile": profile.name}
    counts = {"nodes": profile.nodes or 1, "processes": profile.tasks_per_node or 1}
    context = open_context(profile, Catalog(steps={}, broken={}, kinds=Kinds({})))
    fields = {
        "step": identity["step"],
        "config_name": "default",
        "config": {},
        "inputs": (),
        "outputs": (),
        "entrypoint": run.entrypoint,
        "config_class": run.config,
        "launch": run.launch,
        "resources": counts,
        "arguments": (),
        **plan_placement(run, context, resources=counts, image=profile.image, notes=[]),
    }
    return seal_plan(fields, identity)
