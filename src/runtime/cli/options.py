"""What the groups of commands share: how a group is made, ``--json``, and the choice of a store."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from nemotron_style.runtime.cli.lazy import LazyGroup

if TYPE_CHECKING:
    from nemotron_style.runtime.store.store import Store

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
SHOWN = 50
Limit = Annotated[
    int | None,
    typer.Option(
        min=0, metavar="N", help=f"List so many, 0 for all; {SHOWN} without it, all as JSON."
    ),
]
Listed = TypeVar("Listed")


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


def choose_limit(limit: int | None, *, as_json: bool) -> int:
    """How many to list, 0 for all: what ``--limit`` says, else all in a document."""
    return (0 if as_json else SHOWN) if limit is None else limit


def print_more(more: int, what: str) -> None:
    """Say below a table how many older ones it leaves out."""
    if more:
        print(f"note: {more} older {what} are not listed; --limit 0 lists all", file=sys.stderr)


def open_store(context: typer.Context) -> Store:
    """The store of the chosen profile, else of the project."""
    from nemotron_style.runtime.profiles.model import load_profile
    from nemotron_style.runtime.store.roots.location import choose_scratch, default_root
    from nemotron_style.runtime.store.store import Store

    profile = load_profile(context.obj)
    root = default_root(profile.store)
    return Store(root, scratch=choose_scratch(root, profile.scratch))
