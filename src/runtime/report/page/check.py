"""Whether a report is the one that was written, and whether its records are those of a store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from nemotron_style.runtime.errors import ArtifactError, Problem, RefError, StepsError, UsageError
from nemotron_style.runtime.report.page.embed import PLAN, RECORD, SCHEMA
from nemotron_style.runtime.report.page.seal import is_sealed
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.run.kept_run import find_kept
from nemotron_style.runtime.run.plan import parse_plan
from nemotron_style.runtime.store.record import Record, parse_record
from nemotron_style.runtime.store.ref import check_word
from nemotron_style.runtime.store.store import Store
from nemotron_style.runtime.text_file import read_text_file

MOST_BYTES = 64 << 20
SAME, REMOVED = "same", "removed"
CHANGED, DIFFERS, ABSENT = "changed", "differs", "not in this store"
"""``changed`` is not what the report's own hash says; ``differs`` is not what the store has."""
FINE = (SAME, REMOVED)


@dataclass(frozen=True)
class Check:
    """What became of one part of a report; ``detail`` says more where there is more to say."""

    kind: str
    name: str
    state: str
    detail: str = ""

    @property
    def is_fine(self) -> bool:
        """Whether it is what was written, and what the store has, or had before a removal."""
        return self.state in FINE


def check_report(path: Path, store: Store) -> list[Check]:
    """What became of the page, and of each record and plan in it.

    Raises UsageError for a file that is no report, or one of a newer version.
    """
    page = read_text_file(path, UsageError, most=MOST_BYTES)
    documents = read_documents(page, where=str(path))
    whole = SAME if is_sealed(page) else CHANGED
    detail = "" if whole == SAME else "it is not byte for byte the page that was written"
    checks = [Check("page", path.name, whole, detail)]
    for document in documents:
        texts = [document.get(key) for key in ("kind", "name", "text", "sha256")]
        if not all(isinstance(text, str) for text in texts):
            raise UsageError(_no_report(str(path), "a record in it cannot be read"))
        kind, name, text, sha256 = map(str, texts)
        state, detail = _check(store, kind, name, text, sha256)
        checks.append(Check(kind, name, state, detail))
    return checks


def read_documents(page: str, *, where: str) -> list[Mapping[str, Any]]:
    """What a page embeds; raises UsageError for one that embeds nothing readable."""
    finder = _DataFinder()
    finder.feed(page)
    try:
        body = json.loads("".join(finder.parts))
    except (ValueError, RecursionError):
        raise UsageError(_no_report(where, "holds no records that can be read")) from None
    if not isinstance(body, dict) or not isinstance(body.get("documents"), list):
        raise UsageError(_no_report(where, "holds no records that can be read"))
    if body.get("schema") != SCHEMA:
        what, fix = "was written by another version", "check it with that version"
        got = f"schema {body.get('schema')!r}"
        raise UsageError(Problem(where=where, what=what, got=got, allowed=str(SCHEMA), fix=fix))
    if not all(isinstance(each, dict) for each in body["documents"]):
        raise UsageError(_no_report(where, "a record in it cannot be read"))
    found: list[Mapping[str, Any]] = body["documents"]
    return found


def _check(store: Store, kind: str, name: str, text: str, sha256: str) -> tuple[str, str]:
    data = text.encode("utf-8", "surrogatepass")
    if hashlib.sha256(data).hexdigest() != sha256:
        return CHANGED, "its hash is not the one that the report has for it"
    if kind == RECORD:
        return _check_record(store, name, data)
    if kind == PLAN:
        return _check_plan(store, name, text)
    return CHANGED, f"there is no document of the kind {kind!r}"


def _check_record(store: Store, ref: str, data: bytes) -> tuple[str, str]:
    """Compare a record with the store's, as what they say: an older one may be written shorter."""
    try:
        record = parse_record(data, where=ref)
    except (ArtifactError, RefError) as error:
        return CHANGED, error.problems[0].what
    if record.ref != ref:
        return CHANGED, f"it is the record of {record.ref}"
    try:
        known = store.find(ref)
        if known is None and (tombstone := store.tombstone(ref)):
            if tombstone.record == record:
                return REMOVED, tombstone.describe()
            return DIFFERS, _name_fields(record, tombstone.record)
    except (ArtifactError, RefError) as error:
        return DIFFERS, str(error.problems[0])
    if known is None:
        return ABSENT, _find_content(store, record)
    return (SAME, "") if known.record == record else (DIFFERS, _name_fields(record, known.record))


def _check_plan(store: Store, run_id: str, text: str) -> tuple[str, str]:
    try:
        parse_plan(text, where=run_id)
        run = RunFolder(store.layout.runs / check_word(run_id, "run id"))
        if not run.exists and not (run := find_kept(store, run_id) or run).exists:
            return ABSENT, "its run is not there"
        own = (run.path / "plan.json").read_bytes()
    except OSError as error:
        return DIFFERS, f"the store's plan cannot be read: {error.strerror}"
    except StepsError as error:
        return CHANGED, error.problems[0].what
    return (SAME, "") if own == text.encode() else (DIFFERS, "the store's plan has another text")


def _name_fields(ours: Record, theirs: Record) -> str:
    """Which fields of two records are not the same."""
    fields = [name for name in Record.model_fields if getattr(ours, name) != getattr(theirs, name)]
    return f"other in the store: {', '.join(fields)}"


def _find_content(store: Store, record: Record) -> str:
    """Where the same content is under another name."""
    same = [artifact.ref for artifact in store.by_digest(record.digest)]
    return f"the same content is {', '.join(same)}" if same else ""


def _no_report(where: str, what: str) -> Problem:
    return Problem(where=where, what=what, fix="`nemotron-style report REF` writes one")


class _DataFinder(HTMLParser):
    """Collects the text of ``<script type="application/json" id="data">``."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag == "script" and ("id", "data") in attrs

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag != "script"

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.parts.append(data)
