"""The page of all commands and options, from the command line's own description."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from typer.main import get_command

from nemotron_style.runtime.cli import PROGRAM, app

BAR = "\\|"  # in a table a bare one would end the cell


def render_commands() -> str:
    """Markdown: one section a command."""
    return "\n".join(_render_group(get_command(app), PROGRAM))


def _render_group(group: Any, path: str) -> Iterator[str]:
    context = group.make_context(path, [], resilient_parsing=True)
    for name in group.list_commands(context):
        command, full = group.get_command(context, name), f"{path} {name}"
        if hasattr(command, "list_commands"):
            yield f"\n## {full}\n\n{_join_lines(command.help)}\n"
            if options := list(_rows(command)):
                yield _table(options, f"Before the command, as in `{full} --profile NAME ...`")
            yield from _render_group(command, full)
        else:
            yield _render_command(command, full, depth=2 if path == PROGRAM else 3)


def _render_command(command: Any, full: str, *, depth: int) -> str:
    context = command.make_context(full, [], resilient_parsing=True)
    usage = " ".join([full, *command.collect_usage_pieces(context)])
    parts = [f"\n{'#' * depth} {full}\n", f"{_join_lines(command.help)}\n", f"```\n{usage}\n```\n"]
    parts.append(_table(list(_rows(command)), ""))
    if command.epilog:
        parts.append(f"```console\n{_as_console(command.epilog)}\n```\n")
    return "\n".join(parts)


def _rows(command: Any) -> Iterator[tuple[str, str]]:
    """What may be given, and what it means, as ``--help`` says it."""
    context = command.make_context("", [], resilient_parsing=True)
    for param in command.params:
        record = param.get_help_record(context)
        if record and "--help" not in param.opts:
            yield f"`{record[0]}`", record[1]


def _table(rows: list[tuple[str, str]], title: str) -> str:
    if not rows:
        return ""
    lines = [f"| {name.replace('|', BAR)} | {_join_lines(text)} |" for name, text in rows]
    return "\n".join([*([f"{title}:\n"] if title else []), "| | |", "|---|---|", *lines, ""])


def _join_lines(text: str | None) -> str:
    """On one line, with no character that Markdown would take for its own."""
    plain = " ".join((text or "").replace("\b", "").split())
    return plain.replace("|", BAR).replace("<", "&lt;").replace("*", "\\*")


def _as_console(epilog: str) -> str:
    """The examples of a command: a line that begins with the program is typed at a prompt."""
    lines = [line.strip() for line in epilog.replace("\b", "").splitlines() if line.strip()]
    return "\n".join(f"$ {line}" if line.startswith(PROGRAM) else f"# {line}" for line in lines)
