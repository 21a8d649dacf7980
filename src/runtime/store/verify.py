"""Whether an artifact's files are still those that were committed.

The shallow form trusts a file whose size and modification time are those it had when it was
hashed, and hashes every other one. So a time never proves damage, it is only a reason not to look:
a store that was copied without its times verifies all the same, just more slowly. The deep form
trusts nothing. Of what was adopted by reference, the files at its source are looked at.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from nemotron_style.runtime.errors import ArtifactError, Problem
from nemotron_style.runtime.store.digest import File, Found, digest_files, find_files, hash_file
from nemotron_style.runtime.store.index import Times
from nemotron_style.runtime.store.record import Record


def verify_files(record: Record, path: Path, *, times: Times | None = None) -> list[Problem]:
    """Everything that differs between record and files; ``times`` make the check shallow."""
    problems = _compare(record, path, times)
    if not record.is_referenced:
        return problems
    assert record.origin
    fix = f"it was adopted by reference: put back what was at {record.origin.source} (in a "
    fix += "container, mount it), or adopt it anew"
    return [replace(problem, fix=problem.fix or fix) for problem in problems]


def _compare(record: Record, path: Path, times: Times | None) -> list[Problem]:
    try:
        found = {file.path: file for file in find_files(path, referenced=record.is_referenced)}
    except ArtifactError as error:
        return list(error.problems)
    recorded = {file.path: file for file in record.files}

    def problem(key: str, what: str) -> Problem:
        return Problem(where=record.ref, key=key, what=what)

    problems = [problem(name, "is missing") for name in sorted(recorded.keys() - found.keys())]
    for name in sorted(found.keys() - recorded.keys()):
        problems.append(problem(name, "was not committed with the artifact"))
    for name in sorted(recorded.keys() & found.keys()):
        state = found[name].source.lstat()
        if times is None or times.get(name) != [state.st_size, state.st_mtime_ns]:
            problems += _compare_content(record.ref, recorded[name], found[name])
    if digest_files(record.files) != record.digest:
        what = "the digest is not that of its files"
        problems.append(Problem(where=record.ref, what=what, got=record.digest))
    return problems


def _compare_content(ref: str, file: File, found: Found) -> list[Problem]:
    size = found.source.lstat().st_size
    if size != file.size:
        what, got, allowed = "has another size", f"{size} bytes", f"{file.size} bytes"
        return [Problem(where=ref, key=file.path, what=what, got=got, allowed=allowed)]
    try:
        content = hash_file(found).file.sha256
    except OSError as error:
        return [Problem(where=ref, key=file.path, what=f"cannot be read: {error.strerror}")]
    if content == file.sha256:
        return []
    got, allowed = (f"sha256 {digest[:12]}…" for digest in (content, file.sha256))
    return [Problem(where=ref, key=file.path, what="has other content", got=got, allowed=allowed)]
