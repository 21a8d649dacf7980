"""The formats in which a lineage is told, by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from nemotron_style.runtime.store.lineage.drawing import render_dot, render_mermaid
from nemotron_style.runtime.store.lineage.graph import Lineage, to_dict
from nemotron_style.runtime.store.lineage.openlineage import to_events
from nemotron_style.runtime.store.lineage.rocrate import to_crate
from nemotron_style.runtime.store.lineage.text import render_tree


def render(lineage: Lineage, style: str) -> str:
    """The graph in one of :data:`FORMATS`."""
    return FORMATS[style](lineage)


def _render_json(tell: Callable[[Lineage], Any]) -> Callable[[Lineage], str]:
    return lambda lineage: json.dumps(tell(lineage), indent=2, ensure_ascii=False)


FORMATS: Mapping[str, Callable[[Lineage], str]] = {
    "tree": render_tree,
    "json": _render_json(to_dict),
    "mermaid": render_mermaid,
    "dot": render_dot,
    "openlineage": _render_json(to_events),
    "ro-crate": _render_json(to_crate),
}
JSON = frozenset({"json", "openlineage", "ro-crate"})
"""Those that are one JSON document."""
