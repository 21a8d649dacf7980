"""What the shell offers after Tab. A completion never fails: it offers nothing instead."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import typer

from nemotron_style.runtime.errors import StepsError


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
    except StepsError:
        return []
