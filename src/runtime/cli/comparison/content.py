"""The files in which two artifacts differ, opened as their kinds say, and shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from nemotron_style.runtime.catalog.kinds import Kinds
from nemotron_style.runtime.cli.table import PAGE
from nemotron_style.runtime.config.resolve import import_object
from nemotron_style.runtime.errors import shorten
from nemotron_style.runtime.store.content.files import Side, compare_files
from nemotron_style.runtime.store.content.finding import Finding
from nemotron_style.runtime.store.content.tensors import WeightLayout
from nemotron_style.runtime.store.record import Artifact
from nemotron_style.runtime.store.store import Store


def find_content_differences(
    left: Artifact, right: Artifact, *, store: Store, kinds: Kinds
) -> list[Finding]:
    """Every file in which two artifacts differ, and where; nothing is read of equal ones."""
    if left.digest == right.digest:
        return []
    layout = find_layout(left.kind, kinds) if left.kind == right.kind else None
    sides = [Side(artifact.record, store.fetch(artifact)) for artifact in (left, right)]
    return compare_files(*sides, layout=layout)


def find_layout(kind: str, kinds: Kinds) -> WeightLayout | None:
    """How the weights of a kind are opened; None for safetensors, and for what has none.

    Raises ManifestError where what the kind names cannot be imported.
    """
    ancestors = kinds.ancestors(kind) if kind in kinds else ()
    for name in ancestors:
        if weights := kinds[name].weights:

            def open_weights(path: Any, text: str = weights.open, kind: str = name) -> Any:
                return import_object(text, where=f"kind {kind}", key="weights.open")(path)

            return WeightLayout(weights.folder, open_weights)
    return None


def render_findings(findings: Sequence[Finding]) -> Iterator[str]:
    """A line for each, and below it, indented, its examples."""
    for finding in findings:
        yield f"  {finding.path}: {finding.summary}"
        yield from (f"      {shorten(example, PAGE - 6)}" for example in finding.examples)


def describe_findings(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """The same as plain data."""
    return [asdict(finding) for finding in findings]
