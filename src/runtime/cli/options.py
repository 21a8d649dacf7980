"""What the groups of commands share: how a group is made, ``--json``, and the choice of a store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from nemotron_style.runtime.cli.lazy import LazyGroup

if TYPE_CHECKING:
    from nemotron_style.runtime.store.store import Store

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
RunWord = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="A run id, the beginning of one, an artifact's ref, or latest."
    ),
]


def command_group(purpose: str, *, lazy: Mapping[str, str] | None = None) -> typer.Typer:
    """A group of commands whose help is plain text.

    Those in ``lazy`` (``module:app`` by name) are imported when one of them is used.
    """
    return typer.Typer(
        cls=type("Group", (LazyGroup,), {"lazy": lazy or {}}),
        help=purpose,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
    )


def choose_store(
    context: typer.Context,
    profile: Annotated[
        str | None, typer.Option("--profile", "-p", help="Use this profile's store.")
    ] = None,
) -> None:
    """Remember which profile's store the command below works on."""
    context.obj = profile


def open_store(context: typer.Context) -> Store:
    """The store of the chosen profile, else of the project."""
    from nemotron_style.runtime.profiles.model import load_profile
    from nemotron_style.runtime.store.roots.location import default_root
    from nemotron_style.runtime.store.store import Store

    return Store(default_root(load_profile(context.obj).store))
