"""Modules and lines of every room of ``src``, and what is too large: ``python tests/rooms.py``.

A room is a package. It holds at most 16 modules beside its ``__init__``; a module has at most 300
lines and a function at most 60. A recipe's ``run`` may have 150, since it is to be read in one go.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[1] / "src"
MODULES_OF_A_ROOM = 16
LINES_OF_A_MODULE = 300
LINES_OF_A_FUNCTION = 60
LINES_OF_A_RECIPE_RUN = 150


def read_rooms(sources: Path = SOURCES) -> dict[Path, dict[Path, str]]:
    """The text of each module of each room; both named relative to ``sources``."""
    rooms: dict[Path, dict[Path, str]] = {}
    for path in sorted(sources.rglob("*.py")):
        name = path.relative_to(sources)
        rooms.setdefault(name.parent, {})[name] = path.read_text(encoding="utf-8")
    return rooms


def measure_functions(module: Path, text: str) -> Iterator[tuple[str, int, int]]:
    """Name, lines and allowed lines of every function and method of a module."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            is_run = module.name == "recipe.py" and node.name == "run"
            allowed = LINES_OF_A_RECIPE_RUN if is_run else LINES_OF_A_FUNCTION
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1, allowed


def find_excess(sources: Path = SOURCES) -> list[str]:
    """A line of text for each room, module and function that is larger than allowed."""
    problems = []
    for room, modules in read_rooms(sources).items():
        count = sum(module.name != "__init__.py" for module in modules)
        if count > MODULES_OF_A_ROOM:
            problems.append(f"{room}: {count} modules; allowed: {MODULES_OF_A_ROOM}")
        for module, text in modules.items():
            lines = len(text.splitlines())
            if lines > LINES_OF_A_MODULE:
                problems.append(f"{module}: {lines} lines; allowed: {LINES_OF_A_MODULE}")
            for name, lines, allowed in measure_functions(module, text):
                if lines > allowed:
                    problems.append(f"{module}: {name}: {lines} lines; allowed: {allowed}")
    return problems


def main() -> int:
    """Print a line a room, the sums, and everything too large; 1 when there is any."""
    print(f"{'ROOM':45} MODULES  LINES")
    modules = lines = 0
    for room, texts in read_rooms().items():
        in_room = sum(len(text.splitlines()) for text in texts.values())
        if count := sum(module.name != "__init__.py" for module in texts):
            print(f"{room!s:45} {count:7} {in_room:6}")
        modules, lines = modules + count, lines + in_room
    print(f"{'all':45} {modules:7} {lines:6}")
    problems = find_excess()
    print(*problems, sep="\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
