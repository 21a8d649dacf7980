"""What the shell offers after Tab. A completion never fails: it offers nothing instead."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated

import typer

from nemotron_style.runtime.errors import StepsError

SHOWN = 100
"""Artifacts and runs that are offered: the newest."""


def complete_step(incomplete: str) -> list[str]:
    """Step ids, and aliases once the beginning of one was typed."""
    from nemotron_style.runtime.catalog.catalog import load_catalog

    def names() -> list[str]:
        catalog = load_catalog()
        return [*catalog.steps, *(catalog.aliases if incomplete else ())]

    return _offer(names, incomplete)


def complete_config(ctx: typer.Context, incomplete: str) -> list[str]:
    """The configs of the step that stands on the line."""
    from nemotron_style.runtime.catalog.catalog import load_catalog

    return _offer(lambda: load_catalog().find(ctx.params.get("step") or "").configs, incomplete)


def complete_slot(ctx: typer.Context, incomplete: str) -> list[str]:
    """The inputs of the step that stands on the line, each with the sign behind it."""
    from nemotron_style.runtime.catalog.catalog import load_catalog

    def names() -> list[str]:
        step = load_catalog().find(ctx.params.get("step") or "")
        return [f"{slot.name}=" for slot in step.consumes]

    return _offer(names, incomplete)


def complete_key(ctx: typer.Context, incomplete: str) -> list[str]:
    """The keys of the config of the step that stands on the line, each with the sign behind it."""
    from nemotron_style.runtime.catalog.catalog import load_catalog
    from nemotron_style.runtime.config.resolve import resolve_config
    from nemotron_style.runtime.validation import flatten

    def names() -> list[str]:
        step = load_catalog().find(ctx.params.get("step") or "")
        config = resolve_config(step, name=ctx.params.get("config") or "default")
        return [f"{key}=" for key in flatten(config.values)]

    return _offer(names, incomplete)


def complete_ref(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of artifacts; one without a version is the newest of that name."""
    from nemotron_style.runtime.cli.options import open_store

    def names() -> list[str]:
        newest, _, _ = open_store(ctx).list_artifacts(limit=SHOWN)
        return list(dict.fromkeys(artifact.ref.partition(":")[0] for artifact in newest))

    return _offer(names, incomplete)


def complete_run(ctx: typer.Context, incomplete: str) -> list[str]:
    """Ids of runs, the newest first."""
    from nemotron_style.runtime.cli.options import open_store
    from nemotron_style.runtime.run.listing import list_runs

    def names() -> list[str]:
        return ["latest", *(run.run_id for run in list_runs(open_store(ctx).local, limit=SHOWN))]

    return _offer(names, incomplete)


Ref = Annotated[
    str,
    typer.Argument(
        help="name, name:latest, name:v3 or sha256:<prefix>.", autocompletion=complete_ref
    ),
]
RunWord = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="A run id, the beginning of one, an artifact's ref, or latest.",
        autocompletion=complete_run,
    ),
]


def complete_kind(incomplete: str) -> list[str]:
    """Kinds of artifacts."""
    from nemotron_style.runtime.catalog.kinds import load_kinds

    return _offer(lambda: load_kinds().names, incomplete)


def complete_category(incomplete: str) -> list[str]:
    """Categories of steps."""
    from nemotron_style.runtime.catalog.catalog import load_catalog

    def names() -> list[str]:
        return sorted({step.category for step in load_catalog().steps.values()})

    return _offer(names, incomplete)


def complete_profile(incomplete: str) -> list[str]:
    """Profiles, those of the package and of the project."""
    from nemotron_style.runtime.profiles.files import read_profiles

    return _offer(lambda: sorted(read_profiles()), incomplete)


def _offer(names: Callable[[], Iterable[str]], incomplete: str) -> list[str]:
    try:
        return [name for name in names() if name.startswith(incomplete)]
    except (StepsError, OSError):
        return []
