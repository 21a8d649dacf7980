"""Where two artifacts differ: in their files, their inputs, and how they were made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nemotron_style.runtime.store.record import Artifact, Record

_TOLD = ("config", "code", "environment", "hardware", "seeds", "metrics", "facts")


@dataclass(frozen=True)
class Difference:
    """One key that differs; None where a side does not have it."""

    key: str
    left: Any
    right: Any


def compare(left: Artifact, right: Artifact) -> list[Difference]:
    """Every difference that could matter, by dotted key; refs and times of creation do not."""
    ours, theirs = _flat(left.record), _flat(right.record)
    keys = list(ours) + [key for key in theirs if key not in ours]
    return [
        Difference(key, ours.get(key), theirs.get(key))
        for key in keys
        if ours.get(key) != theirs.get(key)
    ]


def _flat(record: Record) -> dict[str, Any]:
    flat: dict[str, Any] = {"kind": record.kind, "digest": record.digest}
    if record.producer:
        producer = record.producer
        flat |= {"step": producer.step, "config_name": producer.config_name}
    if record.origin:
        flat["origin"] = record.origin.source
    for edge in record.inputs:
        flat[f"inputs.{edge.slot}"] = f"{edge.ref} {edge.digest}"
    for field in _TOLD:
        flat |= dict(flatten(getattr(record, field), field))
    return flat | {f"files[{file.path}]": file.sha256 for file in record.files}


def flatten(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf."""
    for name, value in values.items():
        key = f"{prefix}.{name}" if prefix else str(name)
        if isinstance(value, Mapping) and value:
            yield from flatten(value, key)
        else:
            yield key, value
