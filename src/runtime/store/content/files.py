"""Which files of two artifacts differ, and in what: the artifacts' content as findings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from nemotron_style.runtime.errors import StepsError
from nemotron_style.runtime.store.content.finding import (
    Finding,
    count,
    describe_keys,
    differing_keys,
    show_row,
)
from nemotron_style.runtime.store.content.rows import compare_rows, has_rows
from nemotron_style.runtime.store.content.tensors import (
    SUFFIX,
    WeightLayout,
    compare_tensors,
    open_safetensors,
)
from nemotron_style.runtime.store.record import Record

MOST_TEXT_BYTES = 4 << 20
PIECE = 1 << 20


@dataclass(frozen=True)
class Side:
    """One of two artifacts: what its record says of its files, and the folder that has them."""

    record: Record
    folder: Path

    @property
    def hashes(self) -> dict[str, str]:
        """The hash of each file, by its path."""
        return {file.path: file.sha256 for file in self.record.files}


def compare_files(left: Side, right: Side, *, layout: WeightLayout | None = None) -> list[Finding]:
    """Every file that two artifacts do not have in common, and where it differs.

    All files of weights are one finding; ``layout`` is that of weights which are not safetensors.
    What cannot be compared, because it is damaged or a package is missing, says so.
    """
    ours, theirs = left.hashes, right.hashes
    differing = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    findings = []
    prefix = f"{layout.folder}/" if layout else SUFFIX
    weights = [name for name in differing if name.startswith(prefix) or name.endswith(SUFFIX)]
    if weights:
        findings.append(_compare_weights(left, right, len(weights), layout))
    for pair in _pair([name for name in differing if name not in weights], ours, theirs):
        findings.append(_compare_pair(*pair, left=left, right=right))
    return findings


def _pair(
    differing: list[str], ours: Mapping[str, str], theirs: Mapping[str, str]
) -> Iterator[tuple[str | None, str | None]]:
    """Which file stands against which: that of its name, but for a lone file of rows."""
    rows = [name for name in differing if has_rows(name)]
    ours_alone = [name for name in rows if name not in theirs]
    theirs_alone = [name for name in rows if name not in ours]
    if len(ours_alone) == len(theirs_alone) == 1:
        yield ours_alone[0], theirs_alone[0]
        differing = [name for name in differing if name not in (*ours_alone, *theirs_alone)]
    for name in differing:
        yield (name if name in ours else None), (name if name in theirs else None)


def _compare_weights(left: Side, right: Side, files: int, layout: WeightLayout | None) -> Finding:
    name = f"weights ({count(files, 'file')})"
    try:
        if layout:
            sides = [layout.open(side.folder / layout.folder) for side in (left, right)]
        else:
            sides = [open_safetensors(side.folder) for side in (left, right)]
        return compare_tensors(*sides, name=name)
    except (StepsError, OSError, ImportError) as error:
        return _explain_unread(name, error)


def _compare_pair(ours: str | None, theirs: str | None, *, left: Side, right: Side) -> Finding:
    if ours is None or theirs is None:
        only = "right" if ours is None else "left"
        return Finding(str(ours or theirs), f"only {only}", facts={"only": only})
    name = ours if ours == theirs else f"{ours} / {theirs}"
    paths = left.folder / ours, right.folder / theirs
    try:
        if has_rows(ours) and has_rows(theirs):
            return compare_rows(*paths, name=name)
        if max(path.stat().st_size for path in paths) <= MOST_TEXT_BYTES:
            texts = [path.read_bytes().decode() for path in paths]
            return _compare_json(texts, name) or _compare_lines(texts, name)
    except UnicodeDecodeError:
        pass
    except (StepsError, OSError, ImportError, ValueError) as error:
        return _explain_unread(name, error)
    return _compare_bytes(*paths, name=name)


def _explain_unread(name: str, error: Exception) -> Finding:
    missing = error.name if isinstance(error, ImportError) else None
    why = f"the package {missing} is needed for that" if missing else " ".join(str(error).split())
    return Finding(name, f"differs, and was not looked into: {why}", facts={"unread": why})


def _compare_json(texts: list[str], name: str) -> Finding | None:
    """The keys that differ, where both texts are JSON."""
    try:
        left, right = (json.loads(text) for text in texts)
    except (ValueError, RecursionError):
        return None
    keys = differing_keys(left, right)
    if not keys:
        return Finding(name, "the same values, written in another way", facts={"keys": []})
    summary = count(len(keys), "key") + _differ(keys)
    return Finding(name, summary, tuple(describe_keys(left, right)), {"keys": keys})


def _compare_lines(texts: list[str], name: str) -> Finding:
    left, right = (text.splitlines() for text in texts)
    pairs = zip_longest(left, right, fillvalue="")
    differing = [number for number, pair in enumerate(pairs, start=1) if pair[0] != pair[1]]
    first: int = differing[0] if differing else 0
    lines: list[Any] = [side[first - 1 : first] for side in (left, right)]
    shown = " -> ".join(show_row(line[0] if line else "") for line in lines)
    summary = count(len(differing), "line") + _differ(differing) + f", the first is line {first}"
    return Finding(name, summary, (shown,), {"lines": len(differing), "first": first})


def _differ(things: Sequence[Any]) -> str:
    return " differs" if len(things) == 1 else " differ"


def _compare_bytes(left: Path, right: Path, *, name: str) -> Finding:
    place = 0
    with left.open("rb") as ours, right.open("rb") as theirs:
        while (piece := ours.read(PIECE)) == theirs.read(PIECE) and piece:
            place += len(piece)
        ours.seek(place)
        theirs.seek(place)
        pair = zip(ours.read(PIECE), theirs.read(PIECE), strict=False)
        at = next((at for at, (one, other) in enumerate(pair) if one != other), None)
    sizes = [path.stat().st_size for path in (left, right)]
    first = place + at if at is not None else min(sizes)
    summary = f"differs from byte {first:,} of {sizes[0]:,}"
    summary += f" -> {sizes[1]:,}" if sizes[0] != sizes[1] else ""
    return Finding(name, summary, facts={"first_byte": first, "sizes": sizes})
