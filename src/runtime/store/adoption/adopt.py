"""Bring content from elsewhere into the store: a local path, or a URI by fsspec.

The content is copied and hashed while it is copied: what is committed is what was read, even when
the source changes meanwhile. Where the file system can, the copy shares its bytes with the source
until one of them is written to. Where it cannot, and the user wants it so, large files get a second
name and are made read-only. What is adopted by
reference stays where it is, as large inputs may: its digest is known, and a run that finds it
changed or gone refuses it. Nobody can read the copy who cannot read the source:
modes are kept, but for the right to write. Links to files of the same folder are followed, as a
checkpoint from a model hub is often a directory of them. An ``artifact.json`` at the top, from
another store, is not content: its evidence is kept, and the whole of it as the origin.
"""

from __future__ import annotations

import errno
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType

from nemotron_style.runtime import atomic
from nemotron_style.runtime.errors import ArtifactError, InputError, Problem, StepsError
from nemotron_style.runtime.store.adoption.bring import Ways, bring, hash_source
from nemotron_style.runtime.store.adoption.source import (
    Source,
    explain_unreadable,
    is_uri,
    open_path,
    open_uri,
    strip_local,
)
from nemotron_style.runtime.store.commit import commit_tree, discard, draft_record, finish_commit
from nemotron_style.runtime.store.digest import (
    RECORD_NAME,
    Hashed,
    digest_files,
    directories,
)
from nemotron_style.runtime.store.layout import MAKE_ROOM, Layout
from nemotron_style.runtime.store.record import Artifact, Evidence, Origin, Record, parse_record
from nemotron_style.runtime.store.resolve import find_adopted
from nemotron_style.runtime.store.roots.files import on_disk
from nemotron_style.runtime.store.staged.share import share_files
from nemotron_style.runtime.units import format_size

_FULL = (errno.ENOSPC, errno.EDQUOT)


def adopt(
    layout: Layout,
    location: str,
    *,
    kind: str,
    name: str,
    reference: bool = False,
    link: bool = False,
    ways: Ways | None = None,
) -> Artifact:
    """Bring what is at ``location`` into the store; see :meth:`Store.adopt`."""
    layout.adopted("", kind, name)  # refuses a bad name or kind before anything is read
    location = strip_local(location)
    remote = is_uri(location)
    if remote and reference:
        what = "what lies at a URI cannot be adopted by reference"
        raise InputError(Problem(where=location, what=what, fix="give the path of a mount"))
    if reference and not on_disk(layout.root):
        what = f"the store {layout.root} cannot refer to files of this machine"
        fix = "adopt it without --reference: it is uploaded"
        raise InputError(Problem(where=location, what=what, fix=fix))
    source = open_uri(location) if remote else open_path(location)
    link = link and not remote and _is_on_disk_of(layout, source)
    hashes = hash_source(source) if link or (not remote and layout.name(name).is_dir()) else {}
    asked = digest_files(each.file for each in hashes.values()) if hashes else ""
    if asked and (known := finish_commit(layout, layout.adopted(asked, kind, name))):
        return known
    if source.identity:
        fetched = find_adopted(layout, source.text, kind, name, identity=source.identity)
        key = layout.adopted(fetched.digest if fetched else "", kind, name)
        if fetched and (known := finish_commit(layout, key)):
            return known
    source = replace(source, referenced=reference)
    if not reference and not link:
        _check_room(layout, source)
    staged = atomic.unique_path(layout.staging, "adopted")
    with _removed_when_stopped(layout, staged):
        try:
            atomic.make_dir(staged)
            linked = hashes if link else {}
            ways = ways or Ways()
            hashed = [
                bring(each, staged, source, known=linked, ways=ways) for each in source.entries
            ]
            for directory in directories(staged):
                atomic.sync(directory)
            draft = _draft(source, hashed, kind=kind, name=name)
            key = layout.adopted(draft.digest, kind, name)
            known = finish_commit(layout, key) if draft.digest != asked else None
            if known:
                return known
            if not reference:
                hashed, ways.shared = share_files(layout, staged, hashed)
            return commit_tree(layout, staged, draft, hashed)
        except OSError as error:
            raise _explain(error, layout, source) from error
        except Exception as error:  # what boto, aiohttp and their like raise is no OSError
            if not remote or isinstance(error, StepsError):
                raise
            raise explain_unreadable(source.text, error) from error


def _is_on_disk_of(layout: Layout, source: Source) -> bool:
    """Whether the store lies on the disk of a local source."""
    place = source.entries[0].place
    if place is None or not on_disk(layout.root):
        return False
    return place.stat().st_dev == atomic.nearest_folder(layout.staging).stat().st_dev


def _check_room(layout: Layout, source: Source) -> None:
    """Raise InputError when the copy cannot fit, before any of it is written."""
    needed = sum(entry.size for entry in source.entries)
    free = shutil.disk_usage(atomic.nearest_folder(layout.staging)).free
    if needed > free:
        what = f"{format_size(free)} are free, and a copy of {source.text} needs "
        what += format_size(needed)
        raise InputError(Problem(where=f"store {layout.root}", what=what, fix=MAKE_ROOM))


def _explain(error: OSError, layout: Layout, source: Source) -> InputError:
    if error.errno in _FULL:
        what = f"there is no room for a copy of {source.text}; what was copied is removed"
        return InputError(Problem(where=f"store {layout.root}", what=what, fix=MAKE_ROOM))
    is_ours = str(error.filename or "").startswith(str(layout.local))
    where = f"store {layout.root}" if is_ours else source.text
    verb = "written" if is_ours else "read"
    return InputError(Problem(where=where, what=f"cannot be {verb}: {error}"))


@contextmanager
def _removed_when_stopped(layout: Layout, staged: Path) -> Iterator[None]:
    """Remove what was staged at the end of the block, however it ends.

    SIGTERM and SIGHUP would end the process at once, and leave the copy on the disk; here they
    are what Ctrl-C is. Handlers of others, and what ``nohup`` ignores, stay as they are.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGHUP)
    is_main = threading.current_thread() is threading.main_thread()
    ours = [each for each in numbers if is_main and signal.getsignal(each) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, stop)
    try:
        yield
    finally:
        with suppress(OSError):  # of a full disk the first error is told; gc removes the rest
            discard(layout, staged)
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _draft(source: Source, hashed: list[Hashed], *, kind: str, name: str) -> Record:
    draft = draft_record(hashed, name=name, kind=kind, **_provenance(source))
    original = draft.origin.record if draft.origin else None
    if original and original.digest != draft.digest:
        raise InputError(
            Problem(
                where=source.text,
                what=f"the files are not those that its {RECORD_NAME} lists",
                got=draft.digest,
                allowed=original.digest,
                fix=f"remove {RECORD_NAME} to adopt them as they are",
            )
        )
    return draft


def _provenance(source: Source) -> Evidence:
    if source.record is None:
        return Evidence(origin=_origin(source))
    where = f"{source.text}/{RECORD_NAME}"
    try:
        record = parse_record(source.record, where=where)
    except ArtifactError as error:
        fix = "rename it when it is content, remove it when it is not"
        raise InputError(
            [*error.problems, Problem(where=where, what="is not the record of a store", fix=fix)]
        ) from None
    return Evidence(
        origin=_origin(source, record),
        config=record.config,
        code=record.code,
        environment=record.environment,
        hardware=record.hardware,
        seeds=record.seeds,
        metrics=record.metrics,
        facts=record.facts,
    )


def _origin(source: Source, record: Record | None = None) -> Origin:
    return Origin(
        source=source.text,
        record=record,
        identity=source.identity,
        referenced=source.referenced,
    )
