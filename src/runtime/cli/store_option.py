"""Which store the ``runs`` and ``artifacts`` commands work on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from nemotron_style.runtime.store.store import Store


def choose_store(
    context: typer.Context,
    profile: Annotated[
        str | None, typer.Option("--profile", "-p", help="Use this profile's store.")
    ] = None,
) -> None:
    """Remember which profile's store the command below works on."""
    context.obj = profile


def open_store(context: typer.Context) -> Store:
    """The store that was chosen: of the profile, else of the project."""
    from nemotron_style.runtime.profiles.model import load_profile
    from nemotron_style.runtime.store.store import Store, default_root

    return Store(default_root(load_profile(context.obj).store))
