"""Tables, lists of terms, trees and JSON on standard output.

A terminal gets colour, and lines that fit it. A pipe gets plain text: a table has one row a line
there, however long, and other text is wrapped at 100 columns (``$COLUMNS`` changes both).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from nemotron_style.runtime.cli.terminal import BOLD, PLAIN, escape_json, one_line, unfiltered
from nemotron_style.runtime.errors import Problem

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

PAGE = 100
UNLIMITED = 10_000
LONGEST_TERM = 30  # a longer one (than a third of the line, too) stands on a line of its own
GAP = 2
NO_BREAK = "\xa0"  # a space at which no line ends
STYLES = {
    **dict.fromkeys(("ok", "COMPLETED"), "green"),
    **dict.fromkeys(("problem", "FAILED", "LOST", "TIMEOUT"), "red"),
    **dict.fromkeys(("CANCELLED", "REQUEUED"), "yellow"),
    **dict.fromkeys(("RUNNING", "PENDING"), "cyan"),
}


def print_json(document: Any) -> None:
    """Print one JSON document."""
    print(escape_json(json.dumps(document, indent=2, ensure_ascii=False, default=str)))


def print_problems(problems: Iterable[Problem], *, label: str = "error") -> None:
    """Print each problem on a line of its own, on standard error."""
    for problem in problems:
        print(f"{label}: {problem}", file=sys.stderr)


def choose_width(*, in_pipe: int) -> int:
    """The columns of the terminal or of ``$COLUMNS``; ``in_pipe`` where there is neither."""
    if sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdecimal():
        return shutil.get_terminal_size().columns
    return in_pipe


def open_console(stream: TextIO, *, width: int | None = None) -> Console:
    """A rich console that changes nothing of what it is given but its style."""
    from rich.console import Console

    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def print_table(
    rows: Sequence[Sequence[str]],
    *,
    header: Sequence[str],
    optional: Sequence[str] = (),
    empty: str = "",
) -> None:
    """Print rows in columns, or ``empty`` where there are none.

    Where they do not fit, columns named in ``optional`` are left out.
    """
    if empty and not rows:
        return print(empty)
    from rich.table import Table
    from rich.text import Text

    width = choose_width(in_pipe=UNLIMITED)
    header = [one_line(cell) for cell in header]
    rows = [[one_line(cell) for cell in cells] for cells in rows]
    columns = dict(
        zip(header, zip(*rows, strict=True) if rows else [()] * len(header), strict=True)
    )
    for name in optional:
        needed = sum(max(map(len, [key, *cells])) + GAP for key, cells in columns.items()) - GAP
        if needed > width:
            del columns[name]
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold")
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*(Text(cell, style=STYLES.get(cell, "")) for cell in cells))
    print_renderable(table, width=width)


def print_tree(branches: Mapping[str, Sequence[str]]) -> None:
    """Print each branch and, below it, its leaves."""
    from rich.text import Text
    from rich.tree import Tree

    for name, leaves in branches.items():
        tree = Tree(Text(one_line(name), style="bold"))
        for leaf in leaves:
            tree.add(Text(one_line(leaf)))
        print_renderable(tree, width=choose_width(in_pipe=UNLIMITED))


def print_renderable(renderable: RenderableType, *, width: int) -> None:
    """Print what rich draws, without the spaces with which it fills lines up.

    The texts in it hold no control characters any more: those that there are give colour.
    """
    console = open_console(sys.stdout, width=width)
    with console.capture() as captured:
        console.print(renderable)
    lines = (line.rstrip() for line in captured.get().split("\n")[:-1])
    unfiltered(sys.stdout).write("".join(f"{line}\n" for line in lines))


def render_pairs(pairs: Iterable[tuple[str, str]], *, indent: str = "  ") -> str:
    """Terms and what they mean, the meanings aligned and wrapped."""
    pairs = [(one_line(term), one_line(meaning)) for term, meaning in pairs]
    page = min(choose_width(in_pipe=PAGE), PAGE)
    longest = min(LONGEST_TERM, page // 3)
    short = [len(term) for term, _ in pairs if len(term) <= longest]
    column = len(indent) + max(short, default=0) + GAP
    room = max(page - column, 20)
    lines: list[str] = []
    for term, meaning in pairs:
        # A path or a digest that is longer than the line is left whole, to be copied.
        wrapped = textwrap.wrap(meaning, room, break_on_hyphens=False, break_long_words=False)
        if len(term) <= longest:
            head = indent + emphasise(term) + " " * (column - len(indent) - len(term))
            lines.append((head + "".join(wrapped[:1])).rstrip())
            wrapped = wrapped[1:]
        else:
            parts = textwrap.wrap(term, page - len(indent), break_long_words=False)
            lines += [indent + emphasise(part) for part in parts]
        lines += [" " * column + line for line in wrapped]
    return "".join(f"{line}\n" for line in lines).replace(NO_BREAK, " ")


def emphasise(text: str) -> str:
    """``text`` in bold on a terminal that can, unless ``NO_COLOR`` is set (no-color.org)."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return f"{BOLD}{text}{PLAIN}" if sys.stdout.isatty() and not plain else text


def wrap_text(text: str, width: int, *, continued: bool = False) -> str:
    """``text`` indented and wrapped; ``continued`` lines are one command to the shell."""
    lines = textwrap.wrap(
        " ".join(text.split()),
        width,
        initial_indent="  ",
        subsequent_indent="      " if continued else "  ",
        break_on_hyphens=False,
        break_long_words=False,
    )
    return (" \\\n" if continued else "\n").join(lines)
