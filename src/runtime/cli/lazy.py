"""A group of commands whose modules are imported when one of them is used."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from typing import Any, ClassVar

import typer
from typer.core import TyperGroup
from typer.main import get_command


class LazyGroup(TyperGroup):
    """``lazy`` names, for each command, a ``module:attribute``: a Typer app or a function."""

    lazy: ClassVar[Mapping[str, str]] = {}

    def list_commands(self, ctx: Any) -> list[str]:
        """The commands in the order in which they were declared, those that are installed."""
        there = [name for name, target in self.lazy.items() if _is_there(target)]
        return list(dict.fromkeys([*super().list_commands(ctx), *there]))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command, imported if need be; None when there is none of that name."""
        known = super().get_command(ctx, cmd_name)
        target = self.lazy.get(cmd_name, "")
        if known is not None or not target or not _is_there(target):
            return known
        command = load_command(target, cmd_name)
        self.add_command(command, cmd_name)
        return command


def load_command(target: str, name: str) -> Any:
    """Import ``module:attribute`` and make it a command called ``name``.

    A function may bring its settings along in its module: ``CONTEXT`` (context settings) and
    ``EPILOG`` (examples below the help).
    """
    module_name, _, attribute = target.partition(":")
    module = importlib.import_module(module_name)
    found = getattr(module, attribute)
    if not isinstance(found, typer.Typer):
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        context, epilog = getattr(module, "CONTEXT", None), getattr(module, "EPILOG", None)
        app.command(name, context_settings=context, epilog=epilog)(found)
        found = app
    command = get_command(found)
    command.name = name
    return command


def _is_there(target: str) -> bool:
    return importlib.util.find_spec(target.partition(":")[0]) is not None
