"""Whether an artifact's files are still those that were committed.

The shallow form trusts a file whose size and modification time are those it had when it was
hashed, and hashes every other one. So a time is never a verdict, only a reason not to look:
a store that was copied without its times verifies all the same, just more slowly. The deep form
trusts nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from nemotron_style.runtime.errors import ArtifactError, Problem
from nemotron_style.runtime.store.digest import File, Found, digest_files, find_files, hash_file
from nemotron_style.runtime.store.index import Times
from nemotron_style.runtime.store.record import Record


def verify_files(record: Record, path: Path, *, times: Times | None = None) -> list[Problem]:
    """Everything that differs between the record and the files at ``path``.

    ``times`` makes it shallow.
    """
    try:
        found = {file.path: file for file in find_files(path)}
    except ArtifactError as error:
        return list(error.problems)
    recorded = {file.path: file for file in record.files}
    problems = _audit_presence(record, recorded, found)
    for name in sorted(recorded.keys() & found.keys()):
        if times is None or not _is_unchanged(found[name], times):
            problems += _audit_content(record.ref, recorded[name], found[name])
    if digest_files(record.files) != record.digest:
        problems.append(
            Problem(where=record.ref, what="the digest is not that of its files", got=record.digest)
        )
    return problems


def _audit_presence(
    record: Record, recorded: Mapping[str, File], found: Mapping[str, Found]
) -> list[Problem]:
    missing = [
        Problem(where=record.ref, key=name, what="is missing")
        for name in sorted(recorded.keys() - found.keys())
    ]
    extra = [
        Problem(where=record.ref, key=name, what="was not committed with the artifact")
        for name in sorted(found.keys() - recorded.keys())
    ]
    return missing + extra


def _is_unchanged(found: Found, times: Times) -> bool:
    state = found.source.lstat()
    return times.get(found.path) == [state.st_size, state.st_mtime_ns]


def _audit_content(ref: str, file: File, found: Found) -> list[Problem]:
    size = found.source.lstat().st_size
    if size != file.size:
        return [
            Problem(
                where=ref,
                key=file.path,
                what="has another size",
                got=f"{size} bytes",
                allowed=f"{file.size} bytes",
            )
        ]
    try:
        content = hash_file(found).file.sha256
    except OSError as error:
        return [Problem(where=ref, key=file.path, what=f"cannot be read: {error.strerror}")]
    if content != file.sha256:
        return [
            Problem(
                where=ref,
                key=file.path,
                what="has other content",
                got=f"sha256 {content[:12]}…",
                allowed=f"sha256 {file.sha256[:12]}…",
            )
        ]
    return []
