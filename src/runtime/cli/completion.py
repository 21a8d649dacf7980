"""What the shell offers after Tab. A completion never fails: it offers nothing instead."""

from __future__ import annotations

from collections.abc import Iterable

import typer

from nemotron_style.runtime.errors import StepsError


def complete_step(incomplete: str) -> list[str]:
    """Step ids, and aliases once the beginning of one was typed."""
    from nemotron_style.runtime.catalog.catalog import load_catalog

    try:
        catalog = load_catalog()
    except StepsError:
        return []
    aliases = list(catalog.aliases) if incomplete else []
    return _matching([*catalog.steps, *aliases], incomplete)


def complete_config(ctx: typer.Context, incomplete: str) -> list[str]:
    """The configs of the step that stands on the line."""
    from nemotron_style.runtime.catalog.catalog import load_catalog

    try:
        return _matching(load_catalog().find(ctx.params.get("step") or "").configs, incomplete)
    except StepsError:
        return []


def complete_kind(incomplete: str) -> list[str]:
    """Kinds of artifacts."""
    from nemotron_style.runtime.catalog.kinds import load_kinds

    try:
        return _matching(load_kinds().names, incomplete)
    except StepsError:
        return []


def complete_category(incomplete: str) -> list[str]:
    """Categories of steps."""
    from nemotron_style.runtime.catalog.catalog import load_catalog

    try:
        steps = load_catalog().steps.values()
    except StepsError:
        return []
    return _matching(sorted({step.category for step in steps}), incomplete)


def complete_profile(incomplete: str) -> list[str]:
    """Profiles, those of the package and of the project."""
    from nemotron_style.runtime.profiles.files import read_profiles

    try:
        return _matching(sorted(read_profiles()), incomplete)
    except StepsError:
        return []


def _matching(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
