"""A try at a profile without a run: is everything there that runs with it will need?"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nemotron_style.runtime.errors import Problem, StepsError
from nemotron_style.runtime.planning.preflight import check_port, nearest
from nemotron_style.runtime.profiles.model import Profile
from nemotron_style.runtime.run.plan import Plan, identify, name_run
from nemotron_style.runtime.store.store import default_root

PRIVATE = 0o600


@dataclass(frozen=True)
class Check:
    """One thing that was looked at; without a problem, ``told`` says what was found."""

    name: str
    told: str = ""
    problem: Problem | None = None

    @property
    def text(self) -> str:
        """What to say about it under its name."""
        if self.problem is None:
            return self.told
        named = self.problem.key == self.name
        return str(replace(self.problem, key="") if named else self.problem)

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        found = {"problem": self.problem.as_dict()} if self.problem else {"told": self.told}
        return {"check": self.name, "ok": self.problem is None, **found}


def check_profile(profile: Profile) -> list[Check]:
    """Everything there is to ask about a profile, answered; nothing is written or submitted."""
    return [
        Check("keys", f"{len(profile.summary()) - 1} set, all of them fit"),
        check_store(profile),
        check_workdir(profile),
        *check_mounts(profile),
        *check_secrets(profile),
        *check_launcher(profile),
    ]


def check_store(profile: Profile) -> Check:
    """The store can be written, or made."""
    root = default_root(profile.store)
    there = nearest(root)
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return Check("store", f"{root} can be {'written' if there == root else 'made'}")
    what = f"{there} {'cannot be written' if there.is_dir() else 'is no folder'}"
    fix = "choose another with store = ..., or with $NEMOTRON_STYLE_HOME"
    return Check("store", problem=Problem(key="store", what=what, got=str(root), fix=fix))


def check_workdir(profile: Profile) -> Check:
    """The folder in which steps run is there; inside an image, nobody here can tell."""
    if profile.workdir is None:
        return Check("workdir", "the root of the project")
    path = Path(profile.workdir).absolute()
    if path.is_dir():
        return Check("workdir", str(path))
    if profile.executor == "lepton" or any(_is_below(path, each.target) for each in profile.mounts):
        return Check("workdir", f"{path}, as the job sees it")
    what, fix = "there is no such folder", f"make it: mkdir -p {path}"
    return Check("workdir", problem=Problem(key="workdir", what=what, got=str(path), fix=fix))


def check_mounts(profile: Profile) -> Iterator[Check]:
    """What is mounted is there. A volume of Lepton, or of its machines, is not seen from here."""
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
    """Every secret has a value where it will be taken from."""
    if profile.executor == "lepton":
        return  # the workspace has them; its launcher asks it
    path = Path(profile.secrets_file) if profile.secrets_file else None
    if path and (problem := _judge_file(path.expanduser())):
        yield Check("secrets_file", problem=problem)
        return
    known = _read_names(path.expanduser()) if path else set(os.environ)
    place = str(path) if path else "the environment"
    for name in profile.secrets:
        if name in known:
            yield Check("secrets", f"{name} is in {place}")
            continue
        fix = f"add a line {name}=... to it" if path else f"export {name}=..."
        what = f"{name} is not in {place}"
        yield Check("secrets", problem=Problem(key="secrets", what=what, fix=fix))


def _judge_file(path: Path) -> Problem | None:
    """Only its owner may read it."""
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
    """What the executor itself says to a plan that does nothing."""
    from nemotron_style.runtime.launch.registry import find_launcher

    try:
        launcher = find_launcher(profile.executor)
        plan = draft_nothing(profile)
        launcher.compile(plan)
        problems = [*check_port(plan), *launcher.check(plan)]
    except StepsError as error:
        problems = list(error.problems)
    if not problems:
        yield Check(profile.executor, "would take a job")
    for problem in problems:
        yield Check(profile.executor, problem=problem)


def draft_nothing(profile: Profile) -> Plan:
    """A plan with all that the profile says, and no step."""
    from nemotron_style.runtime.catalog.manifest import Manifest, Run
    from nemotron_style.runtime.paths import find_project_root
    from nemotron_style.runtime.planning.build import place
    from nemotron_style.runtime.planning.request import PlanContext
    from nemotron_style.runtime.store.store import Store

    run = Run(entrypoint=f"{__name__}:check_profile", config=f"{__name__}:Check")
    manifest = Manifest(
        id="profiles/check",
        name="A try",
        category="profiles",
        description="Looks whether a job could start.",
        path=Path("step.toml"),
        run=run,
    )
    root = find_project_root(Path.cwd())
    workdir = Path(profile.workdir).absolute() if profile.workdir else root
    context = PlanContext(
        catalog=None,  # type: ignore[arg-type]  # nothing is looked up
        store=Store(default_root(profile.store)),
        profile=profile,
        workdir=workdir,
    )
    identity = {"step": manifest.id, "config": {}, "inputs": {}, "profile": profile.name}
    fingerprint = identify(identity)
    counted = {"nodes": profile.nodes or 1, "processes": profile.tasks_per_node or 1}
    return Plan(
        run_id=name_run(manifest.id, fingerprint),
        step=manifest.id,
        config_name="default",
        config={},
        inputs=(),
        outputs=(),
        entrypoint=run.entrypoint,
        config_class=run.config,
        launch="torchrun",
        resources=counted,
        workdir=str(workdir),
        arguments=(),
        identity=identity,
        fingerprint=fingerprint,
        **place(manifest, context, counted, []),
    )


def _is_below(path: Path, folder: str) -> bool:
    return path == Path(folder) or Path(folder) in path.parents
