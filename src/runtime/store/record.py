"""A committed artifact and its record, ``artifact.json``.

The record says what the files are, which run made them from what, and with which code. It is
sealed: the last field is the hash of the record's own text (with the seal blanked), so a record
that changed after the commit is noticed by every reader.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypedDict

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_serializer

from nemotron_style.runtime.errors import ArtifactError, NewerRecord, Problem, RefError
from nemotron_style.runtime.store.digest import RECORD_NAME, File
from nemotron_style.runtime.store.ref import check_name, check_word
from nemotron_style.runtime.store.roots.files import on_disk

SCHEMA = 1  # of the records that this program writes; it reads no later one
RESTORE = "restore it from a copy of the store"
GC_OR_RESTORE = (
    "`nemotron-style artifacts gc` writes it again from its second copy; "
    f"where that is damaged too, {RESTORE}"
)
_BLANK = "0" * 64
_SEAL = re.compile(r'(?<="seal": ")[0-9a-f]{64}(?="\n}\n\Z)')
_SEAL_END = 80  # characters from the end of a text within which its seal begins


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class Producer(_Frozen):
    """The run that made an artifact; ``attempts`` holds one entry for every try it took.

    ``rerun_of`` is the run that this one repeated, to see whether it makes the same; else empty.
    """

    run_id: str
    step: str
    slot: str
    config_name: str = "default"
    fingerprint: str = ""
    attempts: tuple[dict[str, Any], ...] = ()
    trackers: dict[str, str] = {}
    rerun_of: str = ""

    @model_serializer(mode="wrap")
    def _leave_out_no_rerun(self, dump: Callable[[Producer], dict[str, Any]]) -> dict[str, Any]:
        body = dump(self)
        if not self.rerun_of:  # earlier versions do not know the key
            del body["rerun_of"]
        return body


class Edge(_Frozen):
    """One input of the run: the slot that it filled and exactly which artifact it was."""

    slot: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    ref: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,99}:v[1-9][0-9]*$")
    kind: str
    digest: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")


class Evidence(TypedDict, total=False):
    """What else a record may tell about how an artifact came to be."""

    config: Mapping[str, Any]
    code: Mapping[str, Any]
    environment: Mapping[str, Any]
    hardware: Mapping[str, Any]
    seeds: Mapping[str, Any]
    metrics: Mapping[str, Any]
    facts: Mapping[str, Any]
    origin: Origin | None


class Record(_Frozen):
    """Everything known about an artifact; ``digest`` covers ``files`` and nothing else."""

    schema_version: Literal[1] = 1
    name: str
    version: int
    kind: str
    digest: str
    files: tuple[File, ...]
    created: str
    producer: Producer | None = None
    inputs: tuple[Edge, ...] = ()
    config: dict[str, Any] = {}
    code: dict[str, Any] = {}
    environment: dict[str, Any] = {}
    hardware: dict[str, Any] = {}
    seeds: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    facts: dict[str, Any] = {}
    origin: Origin | None = None

    @property
    def is_referenced(self) -> bool:
        """Whether its files lie elsewhere, where their owner may change them."""
        return self.origin is not None and self.origin.referenced

    @property
    def ref(self) -> str:
        """``name:v3``."""
        return f"{self.name}:v{self.version}"

    @property
    def size(self) -> int:
        """Bytes in all files together."""
        return sum(file.size for file in self.files)


class Origin(_Frozen):
    """Where adopted content came from; ``record`` when it came from another store.

    ``identity`` is the hash of what a remote file system said of its files (ETags), where it does.
    What is ``referenced`` was not copied: the artifact's files are links to those at ``source``.
    """

    source: str
    record: Record | None = None
    identity: str = ""
    referenced: bool = False


@dataclass(frozen=True)
class Artifact:
    """A committed artifact: its record and the directory with its files. Never write there."""

    record: Record
    path: Path

    @property
    def ref(self) -> str:
        """``name:v3``."""
        return self.record.ref

    @property
    def kind(self) -> str:
        """One of the kinds of ``kinds.toml``."""
        return self.record.kind

    @property
    def digest(self) -> str:
        """``sha256:`` and 64 hex digits over the files."""
        return self.record.digest

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the recipe noted about it."""
        return self.record.facts

    def edge(self, slot: str) -> Edge:
        """This artifact as the input in ``slot`` of another one."""
        return Edge(slot=slot, ref=self.ref, kind=self.kind, digest=self.digest)


def load_artifact(path: Path) -> Artifact:
    """The artifact in the directory ``path``, which is called ``<name>/v<N>``.

    Raises FileNotFoundError when there is no record, hence no artifact, and ArtifactError when the
    record cannot be read, or is not the one that was committed there.
    """
    where = path / RECORD_NAME
    try:
        record = read_record(where)
        if record.ref != f"{path.parent.name}:{path.name}":
            raise _broken(str(where), f"the record is that of {record.ref}")
    except NewerRecord:
        raise
    except ArtifactError as error:  # in its place a record has a second copy, which the index has
        mended = [replace(each, fix=each.fix and GC_OR_RESTORE) for each in error.problems]
        raise ArtifactError(mended) from None
    return Artifact(record, path)


def read_record(path: Path) -> Record:
    """The record in a file.

    Raises FileNotFoundError when there is none, and ArtifactError when it cannot be read.
    """
    return parse_record(read_plain(path), where=str(path))


def read_plain(path: Path) -> bytes:
    """The bytes of a plain file; raises as :func:`read_record` does."""
    try:
        # To read a pipe would take for ever.
        if on_disk(path) and not stat.S_ISREG(path.stat().st_mode):
            raise _broken(str(path), "the record is no plain file")
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except PermissionError:
        what = "the record cannot be read: Permission denied"
        raise ArtifactError(Problem(where=str(path), what=what)) from None
    except OSError as error:
        raise _broken(str(path), f"the record cannot be read: {error.strerror}") from None


def render_record(record: Record) -> str:
    """The sealed text of a record."""
    return render_sealed(record.model_dump(mode="json"))


def render_sealed(body: Mapping[str, Any]) -> str:
    """A JSON object whose last field is the hash of its own text with that field blanked."""
    text = json.dumps({**body, "seal": _BLANK}, indent=2, ensure_ascii=False, allow_nan=False)
    return _SEAL.sub(_hash(text + "\n"), text + "\n")


def parse_record(data: bytes, *, where: str) -> Record:
    """The record in a sealed text.

    Raises ArtifactError for a text that is not the one that was sealed, or of a newer schema.
    """
    return validate_record(parse_sealed(data, where=where), where=where)


def parse_sealed(data: bytes, *, where: str) -> dict[str, Any]:
    """What :func:`render_sealed` wrote; raises ArtifactError when it was changed since."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise _broken(where, "the record is not text") from None
    seal = _SEAL.search(text, max(0, len(text) - _SEAL_END))  # not all of a long record
    if seal is None or _hash(text[: seal.start()] + _BLANK + text[seal.end() :]) != seal[0]:
        raise _broken(where, "the record is not the one that was committed")
    body: dict[str, Any] = json.loads(text)
    del body["seal"]
    return body


def validate_record(body: Mapping[str, Any], *, where: str) -> Record:
    """The record that a JSON object holds; raises ArtifactError for another schema."""
    version = body.get("schema_version")
    if isinstance(version, int) and version > SCHEMA:
        what = f"a newer nemotron-style wrote the record (schema {version}, this reads {SCHEMA})"
        raise NewerRecord(Problem(where=where, what=what, fix="upgrade nemotron-style"))
    try:
        return _check_words(Record.model_validate(body))
    except RefError as error:  # no commit of ours wrote it, and its parts become file names
        raise _broken(where, str(error)) from None
    except ValidationError as error:
        words = [*map(str, error.errors()[0]["loc"]), error.errors()[0]["msg"]]
        raise _broken(where, f"the record has another schema: {': '.join(words)}") from None


def _check_words(record: Record) -> Record:
    check_name(record.name)
    check_word(record.kind, "kind")
    if record.producer:
        check_word(record.producer.run_id, "run id")
        check_word(record.producer.rerun_of or record.producer.run_id, "run id")
        check_word(record.producer.slot, "slot")
    return record


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _broken(where: str, what: str) -> ArtifactError:
    return ArtifactError(Problem(where=where, what=what, fix=RESTORE))
