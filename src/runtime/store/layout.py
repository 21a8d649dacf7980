"""Where everything in a store is. Of one in a bucket, a local folder has runs, staging and cache.

artifacts/<name>/v<N>/              the files, and artifact.json once it is committed
artifacts/<name>/.claims/v<N>       handed out, by exclusive create, and never again
index/digest/<hex>/<ref>            artifacts of this content
index/up/<hex>/<ref>/<slot>~<ref>   inputs of an artifact
index/down/<hex>/<ref>/<slot>~<ref> artifacts that were made from it
index/output/<run id>/<slot>        the record that this run committed, or is about to
index/adopted/<hex>/<kind>/<name>   the same for adopted content
index/made/<ref>                    the same for what neither a run made nor anybody adopted
index/file/<sha256>                 an artifact that has this file; may be lost
index/intent/<key>~<ref>            commits that are under way, or were cut off
index/times/<ref>                   sizes and times of the files when they were hashed
index/newest/<name>                 the newest claim, as its writer saw it; may be lost
index/removing/<ref>                an artifact that is about to be removed: nobody uses it any more
index/removed/<ref>                 the tombstone of one that was: its record, by whom and when
runs/<run id>/                      the runs; in a bucket plan and outputs of complete ones
staging/                            what may be thrown away
cache/<hex>/                        local copies of what a bucket holds
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from nemotron_style.runtime.errors import Problem, RefError
from nemotron_style.runtime.store.digest import RECORD_NAME
from nemotron_style.runtime.store.ref import (
    NamedRef,
    check_name,
    check_word,
    parse_ref,
    parse_version,
    to_key,
)
from nemotron_style.runtime.store.roots import files

INDEX_FOLDERS = (
    "digest", "up", "down", "output", "adopted", "made", "intent", "times", "newest",
)  # fmt: skip
MAKE_ROOM = (
    "make room there (`nemotron-style artifacts gc` removes what ended runs left), "
    "or choose another store"
)


class Layout:
    """Names of files under one root; every part of a name is checked before it is used."""

    def __init__(self, root: Path, local: Path | None = None) -> None:
        self.root = root
        self.local = local or root
        self.artifacts = root / "artifacts"
        self.index = root / "index"
        self.runs = self.local / "runs"
        self.staging = self.local / "staging"
        self.cache = self.local / "cache"

    def name(self, name: str) -> Path:
        """All versions of a name."""
        return self.artifacts / check_name(name)

    def version(self, name: str, version: int) -> Path:
        """The directory of one version."""
        return self.name(name) / f"v{version}"

    def place(self, ref: str) -> Path:
        """The directory of ``name:v3``. Raises RefError for any other ref."""
        parsed = parse_ref(ref)
        if not isinstance(parsed, NamedRef) or parsed.version is None:
            raise RefError(Problem(what="is not the ref of one version", got=repr(ref)))
        return self.version(parsed.name, parsed.version)

    def claims(self, name: str) -> Path:
        """The files whose creation hands out the versions of a name."""
        return self.name(name) / ".claims"

    def digest(self, digest: str) -> Path:
        """Keys of the artifacts with this content."""
        return self.index / "digest" / _hex(digest)

    def file(self, sha256: str) -> Path:
        """Where an artifact is noted that has a file with this hash."""
        return self.index / "file" / sha256

    def edges(self, direction: str, digest: str, ref: str) -> Path:
        """Keys of an artifact's inputs (``up``) or of what was made from it (``down``)."""
        return self.index / direction / _hex(digest) / to_key(ref)

    def times(self, ref: str) -> Path:
        """Sizes and times of an artifact's files."""
        return self.index / "times" / to_key(ref)

    def output(self, run_id: str, slot: str) -> Path:
        """The key under which a run commits a slot once."""
        return self.index / "output" / check_word(run_id, "run id") / check_word(slot, "slot")

    def adopted(self, digest: str, kind: str, name: str) -> Path:
        """The key under which content of a kind is adopted once for a name."""
        directory = self.index / "adopted" / _hex(digest)
        return directory / check_word(kind, "kind") / check_name(name)

    def made(self, ref: str) -> Path:
        """The key under which an artifact of no run and no origin is committed."""
        return self.index / "made" / to_key(ref)

    def removing(self, ref: str) -> Path:
        """The tombstone of an artifact whose removal may still be withdrawn."""
        return self.index / "removing" / to_key(ref)

    def removed(self, ref: str) -> Path:
        """The tombstone of an artifact that was removed for good."""
        return self.index / "removed" / to_key(ref)

    def newest(self, name: str) -> Path:
        """Where the newest claim of a name is noted, so that the next writer lists none."""
        return self.index / "newest" / check_name(name)

    def intent(self, key: Path, ref: str) -> Path:
        """An attempt to commit under ``key``, which claimed the version ``ref``."""
        return self.index / "intent" / f"{self._short(key)}~{to_key(ref)}"

    def intents(self, key: Path) -> list[Path]:
        """All attempts to commit under ``key`` that are under way or were cut off."""
        return sorted((self.index / "intent").glob(f"{self._short(key)}~*"))

    def complete(self, run_id: str) -> Path:
        """In a bucket, what a complete run made, as its ``outputs.json`` says."""
        return self.root / "runs" / check_word(run_id, "run id") / "outputs.json"

    def show(self, path: Path) -> str:
        """A path below the root, or the local folder, as messages name it."""
        base = self.root if path.is_relative_to(self.root) else self.local
        return str(path.relative_to(base))

    def _short(self, key: Path) -> str:
        return hashlib.sha256(key.relative_to(self.index).as_posix().encode()).hexdigest()[:32]


def versions_in(directory: Path) -> list[int]:
    """Numbers of the entries called ``v<N>``, the highest first, committed or not."""
    if files.on_disk(directory) and not directory.is_dir():
        return []
    names = (entry.name for entry in directory.iterdir())
    found = map(parse_version, os.listdir(directory) if files.on_disk(directory) else names)
    return sorted((version for version in found if version is not None), reverse=True)


def is_committed(directory: Path) -> bool:
    """Whether the version in this directory is one: its record is there.

    What we may not look into counts as committed. It is then skipped and named, or its reader gets
    the reason; taken for half-made it would be removed.
    """
    try:
        return (directory / RECORD_NAME).is_file()
    except PermissionError:
        return True


def _hex(digest: str) -> str:
    return digest.removeprefix("sha256:")
