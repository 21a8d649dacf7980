"""The ``[tool.runspec]`` table of a ``step.py``: how NVIDIA Nemotron's runner starts the step.

It stands in comments, as PEP 723 has it: lines from ``# /// script`` to ``# ///`` that hold TOML.
They are read as text; nothing of the step is executed.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nemotron_style.runtime.errors import ManifestError, Problem
from nemotron_style.runtime.paths import show_path
from nemotron_style.runtime.text_file import read_text_file
from nemotron_style.runtime.validation import explain_errors

# The pattern of PEP 723; a block that is never closed does not match.
BLOCK = re.compile(r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$")


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class RunTable(_Table):
    """``cmd`` is shell text with ``{script}`` and ``{config}``; ``workdir`` lies in the image."""

    launch: Literal["torchrun", "ray", "python", "direct"] = "torchrun"
    cmd: str | None = None
    workdir: str | None = None


class ConfigTable(_Table):
    """Where the configs lie, from the folder of ``step.py``, and which one is the default."""

    dir: str = "./config"
    default: str = "default"
    format: Literal["omegaconf", "yaml", "json"] = "omegaconf"


class ResourcesTable(_Table):
    """What the step takes; a ``gpus_per_node`` of ``"gpu"`` is a count that the site decides."""

    nodes: int = Field(default=1, ge=1)
    gpus_per_node: int | Literal["gpu"] = 8


class Runspec(_Table):
    """The whole table; ``setup`` and ``docs`` are texts for people."""

    schema_version: str = Field(default="1", validation_alias="schema")
    docs: str = ""
    name: str = ""
    image: str | None = None
    setup: str = ""
    run: RunTable = RunTable()
    config: ConfigTable = ConfigTable()
    resources: ResourcesTable = ResourcesTable()
    env: dict[str, str] = Field(default_factory=dict)


def read_runspec(script: Path) -> Runspec:
    """The runspec of a ``step.py``.

    Raises ManifestError where the file cannot be read, or has no such table, two, or a malformed
    one.
    """
    where, text = show_path(script), read_text_file(script, ManifestError)
    blocks = [found for found in BLOCK.finditer(text) if found["type"] == "script"]
    if len(blocks) != 1:
        told = f"{len(blocks)} blocks `# /// script`" if blocks else "no block `# /// script`"
        what, fix = f"has {told}, and its [tool.runspec] stands in exactly one", ""
        if not blocks:
            fix = "write one that begins with `# /// script` and ends with `# ///`"
        raise ManifestError(Problem(where=where, what=what, fix=fix))
    first = text.count("\n", 0, blocks[0].start("content"))
    table = _parse(blocks[0]["content"], where=where, first=first)
    try:
        spec = Runspec.model_validate(table)
    except ValidationError as error:
        raise ManifestError(
            Problem(**{**vars(each), "key": f"tool.runspec.{each.key}"})
            for each in explain_errors(error, Runspec, table, where=lambda _: where)
        ) from None
    if spec.run.cmd is not None and not _is_template(spec.run.cmd):
        what, fix = "is no template", "write {script} and {config} where their paths go"
        key, got = "tool.runspec.run.cmd", repr(spec.run.cmd)
        raise ManifestError(Problem(where=where, key=key, what=what, got=got, fix=fix))
    return spec


def _is_template(cmd: str) -> bool:
    try:
        return cmd.format(script="", config="[config]") != cmd.format(script="", config="")
    except (LookupError, ValueError, AttributeError):
        return False


def _parse(content: str, *, where: str, first: int) -> dict[str, Any]:
    """The table out of the comments; ``first`` are the lines of the file above them."""
    lines = [line.removeprefix("#").removeprefix(" ") for line in content.splitlines()]
    try:
        document = tomllib.loads("\n".join(lines))
    except tomllib.TOMLDecodeError as error:
        # The parser counts from the first line of the block.
        reason = re.sub(
            r"at line (\d+)", lambda line: f"at line {int(line[1]) + first}", str(error)
        )
        what = f"the block `# /// script` is not valid TOML: {reason}"
        raise ManifestError(Problem(where=where, what=what)) from None
    tool = document.get("tool")
    table = tool.get("runspec") if isinstance(tool, dict) else None
    if not isinstance(table, dict) or not table:
        what = "its block `# /// script` has no table [tool.runspec]"
        fix = "add [tool.runspec] with a name, and [tool.runspec.run] with launch"
        raise ManifestError(Problem(where=where, what=what, fix=fix))
    return table


def find_imports(script: Path) -> tuple[str, ...]:
    """The packages that a script imports by name, without Python's own; read, never imported.

    Of a script that is no Python, none.
    """
    try:
        tree = ast.parse(script.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return ()
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    tops = {name.partition(".")[0] for name in names}
    return tuple(sorted(tops - sys.stdlib_module_names))
