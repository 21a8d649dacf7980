"""What somebody wants run, and where."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nemotron_style.runtime.catalog.catalog import Catalog
from nemotron_style.runtime.catalog.manifest import Manifest
from nemotron_style.runtime.errors import Problem, UsageError
from nemotron_style.runtime.profiles.model import Profile
from nemotron_style.runtime.store.ref import check_name
from nemotron_style.runtime.store.store import Store


@dataclass(frozen=True)
class RunRequest:
    """What somebody wants run. ``given`` are ``slot=REF`` words."""

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
    """Where and how a request is carried out; ``workdir`` is the project's root.

    ``detached`` jobs outlive the command line; ``force_squash`` makes a squashed image anew.
    """

    catalog: Catalog
    store: Store
    profile: Profile
    workdir: Path
    upstream: bool = True
    detached: bool = False
    force_squash: bool = False


def check_request(request: RunRequest, manifest: Manifest) -> None:
    """Raise for a bad ``--name``, and for ``-- ARGS`` to a step that passes none on."""
    if request.name is not None:
        check_name(request.name)
    if request.arguments and not manifest.run.passthrough:
        what = f"{manifest.id} takes no arguments after --"
        raise UsageError(Problem(where="--", what=what, got=" ".join(request.arguments)))
