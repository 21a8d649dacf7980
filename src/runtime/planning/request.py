"""What somebody wants run, and the surroundings in which it is planned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nemotron_style.runtime.catalog.catalog import Catalog
from nemotron_style.runtime.catalog.manifest import Manifest
from nemotron_style.runtime.errors import Problem, UsageError
from nemotron_style.runtime.paths import find_project_root
from nemotron_style.runtime.profiles.model import Profile
from nemotron_style.runtime.store.ref import check_name
from nemotron_style.runtime.store.roots.location import choose_scratch, default_root
from nemotron_style.runtime.store.store import Store


@dataclass(frozen=True)
class RunRequest:
    """One step to run, as a command line or the config of a later step asks for it.

    ``inputs`` are ``slot=REF`` words; ``arguments`` are passed on to the step's own program.
    """

    step: str
    config: str = "default"
    overrides: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    name: str | None = None
    fresh: bool = False

    def __str__(self) -> str:
        return " ".join([self.step, f"({self.config})", *self.overrides])


@dataclass(frozen=True)
class PlanContext:
    """Where a request is planned: the steps there are, the store, the profile, the project.

    ``upstream`` allows other steps to run first, ``detached`` jobs outlive the command line,
    ``force_squash`` makes a new squashed image. With ``fetch``, inputs that are URIs are brought
    into the store; a dry run asks nothing of the network. ``provisional`` plans are shown and never
    submitted, so an input may be missing, or lie where this machine cannot read it.
    """

    catalog: Catalog
    store: Store
    profile: Profile
    workdir: Path
    upstream: bool = True
    detached: bool = False
    force_squash: bool = False
    fetch: bool = False
    provisional: bool = False


def open_profile_store(profile: Profile) -> Store:
    """The store that the environment, the profile or the project names."""
    root = default_root(profile.store)
    return Store(root, scratch=choose_scratch(root, profile.scratch))


def open_context(profile: Profile, catalog: Catalog) -> PlanContext:
    """The context of the current directory, with the profile's store and work directory."""
    own = Path(profile.workdir).absolute() if profile.workdir else None
    workdir = own or find_project_root(Path.cwd())
    return PlanContext(catalog, open_profile_store(profile), profile, workdir)


def check_request(request: RunRequest, manifest: Manifest) -> None:
    """Raise ``UsageError`` for a bad ``--name``, or ``-- ARGS`` that the step does not accept."""
    if request.name is not None:
        check_name(request.name)
        if not manifest.produces:
            what = f"{manifest.id} makes no artifact that could have a name"
            raise UsageError(Problem(where="--name", what=what, got=request.name))
    if request.arguments and not manifest.run.passthrough:
        what = f"{manifest.id} takes no arguments after --"
        raise UsageError(Problem(where="--", what=what, got=" ".join(request.arguments)))
