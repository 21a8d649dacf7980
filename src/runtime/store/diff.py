"""Where two artifacts differ: in their files, their inputs, and how they were made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nemotron_style.runtime.store.record import Artifact, Record
from nemotron_style.runtime.validation import flatten

_EVIDENCE = ("config", "code", "environment", "hardware", "seeds", "metrics", "facts")


@dataclass(frozen=True)
class Difference:
    """One key that differs; None where a side does not have it."""

    key: str
    left: Any
    right: Any


def compare(left: Artifact, right: Artifact) -> list[Difference]:
    """Every difference that could matter, by dotted key; refs and times of creation do not."""
    ours, theirs = _flatten_record(left.record), _flatten_record(right.record)
    return [
        Difference(key, ours.get(key), theirs.get(key))
        for key in ours | theirs
        if ours.get(key) != theirs.get(key)
    ]


def _flatten_record(record: Record) -> dict[str, Any]:
    flat: dict[str, Any] = {"kind": record.kind, "digest": record.digest}
    if record.producer:
        producer = record.producer
        flat |= {"step": producer.step, "config_name": producer.config_name}
    if record.origin:
        flat["origin"] = record.origin.source
    for edge in record.inputs:
        flat[f"inputs.{edge.slot}"] = f"{edge.ref} {edge.digest}"
    for field in _EVIDENCE:
        flat |= flatten(getattr(record, field), f"{field}.")
    return flat | {f"files[{file.path}]": file.sha256 for file in record.files}
