"""Where two artifacts differ: in how they were made, from what, and in what came of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from nemotron_style.runtime.store.record import Artifact, Record
from nemotron_style.runtime.validation import flatten

_EVIDENCE = ("config", "code", "environment", "hardware", "seeds", "metrics", "facts")
# What makes the difference stands before what it makes.
_ORDER = (
    *("step", "config_name", "rerun_of", "origin", "config", "inputs", "code", "environment"),
    *("hardware", "seeds", "kind", "metrics", "facts", "digest", "files"),
)


@dataclass(frozen=True)
class Difference:
    """One key that differs; None where a side does not have it, ``null`` where it has none."""

    key: str
    left: Any
    right: Any

    @property
    def section(self) -> str:
        """``config``, ``inputs``, ``code``, ``environment``, ``metrics``, ``files`` ..."""
        return _find_section(self.key)


def compare(left: Artifact, right: Artifact) -> list[Difference]:
    """Every difference that could matter, causes first; refs and times of creation do not.

    The first word of a key (:attr:`Difference.section`) is the part of the record that it is in.
    """
    ours, theirs = _flatten_record(left.record), _flatten_record(right.record)
    return [
        Difference(key, _show(ours, key), _show(theirs, key))
        for key in sorted(ours | theirs, key=lambda key: _ORDER.index(_find_section(key)))
        if key not in ours or key not in theirs or _identify(ours, key) != _identify(theirs, key)
    ]


def compare_content(left: Artifact, right: Artifact) -> str:
    """How the files of two artifacts compare, in one line."""
    ours = {file.path: file for file in left.record.files}
    theirs = {file.path: file for file in right.record.files}
    if left.digest == right.digest:
        noun = "file" if len(ours) == 1 else "files"
        return f"bit-identical: every byte of {len(ours)} {noun}"
    every = ours.keys() | theirs.keys()
    differing = sum(ours.get(path) != theirs.get(path) for path in every)
    text = f"{differing} of {len(every)} files differ"
    # A checkpoint's files depend on how many processes wrote it.
    weights = [artifact.facts.get("weights_digest") for artifact in (left, right)]
    if weights[0] and weights[0] == weights[1]:
        return f"{text}; the weights are bit-identical"
    return text


def _find_section(key: str) -> str:
    return key.partition(".")[0].partition("[")[0]


def _show(values: dict[str, Any], key: str) -> Any:
    return "null" if key in values and values[key] is None else values.get(key)


def _identify(values: dict[str, Any], key: str) -> str:
    """What two values have to have in common; of an input that is its content, not its name."""
    if _find_section(key) == "inputs":
        return str(values[key]).rpartition(" ")[2]
    return json.dumps(values[key], sort_keys=True)  # as text: to Python 1, 1.0 and true are equal


def _flatten_record(record: Record) -> dict[str, Any]:
    flat: dict[str, Any] = {"kind": record.kind, "digest": record.digest}
    if record.producer:
        producer = record.producer
        flat |= {"step": producer.step, "config_name": producer.config_name}
        flat |= {"rerun_of": producer.rerun_of} if producer.rerun_of else {}
    if record.origin:
        flat["origin"] = record.origin.source
    for edge in record.inputs:
        flat[f"inputs.{edge.slot}"] = f"{edge.ref} {edge.digest}"
    for field in _EVIDENCE:
        flat |= flatten(getattr(record, field), f"{field}.")
    return flat | {f"files[{file.path}]": file.sha256 for file in record.files}
