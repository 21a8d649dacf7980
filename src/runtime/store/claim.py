"""How a version number is handed out: once, by exclusive create, to whoever comes first.

Who loses a number tries the next one at once, since most races are of two. Who loses again waits
before trying, each time up to twice as long: of many writers that asked all the time, each would be
refused by all the others, and by the time of an answer the number would be gone.
"""

from __future__ import annotations

import random
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep

from nemotron_style.runtime.store.index import key_of
from nemotron_style.runtime.store.layout import Layout, is_committed, versions_in
from nemotron_style.runtime.store.record import Record
from nemotron_style.runtime.store.roots import files
from nemotron_style.runtime.store.roots.transfer import UploadNote

_GUESSES = 5  # so many numbers in a row were taken: ask which is the last
_LONGEST_PAUSE_S = 10.0


def take_version(layout: Layout, staged: Path, draft: Record) -> int:
    """The version for a staged tree; one that was being uploaded goes on under its own."""
    if files.on_disk(layout.root):
        return _claim_version(layout, draft.name)
    note, word = UploadNote(staged), f"version of {draft.name} {draft.digest}"
    if word in note:
        begun = draft.model_copy(update={"version": int(note[word])})
        # Without the intent its files may be removed, or were; a record would be the end of it.
        is_open = files.lexists(layout.intent(key_of(layout, begun), begun.ref))
        if is_open and not is_committed(layout.place(begun.ref)):
            return begun.version
    version = _claim_version(layout, draft.name)
    note[word] = str(version)
    return version


def _claim_version(layout: Layout, name: str) -> int:
    claims = layout.claims(name)
    noted = noted_newest(layout, name) or 0
    version = (noted or _list_newest(layout, name)) + 1
    lost, asked = 0, monotonic()
    # Two writers may begin at the same number; the exclusive create decides between them.
    while not _claim(layout, name, version):
        lost += 1
        newest = _wait_for_newest(layout, name, lost, monotonic() - asked) if lost > 1 else 0
        if lost == _GUESSES and newest <= noted:
            newest = _list_newest(layout, name)
        version, asked = max(version, newest) + 1, monotonic()
    with suppress(OSError):  # without the note the next writer lists the claims
        changed = claims.stat().st_mtime_ns if files.on_disk(claims) else 0
        note = f"{version} {changed}"
        files.write_text(layout.newest(name), note, scratch=layout.staging, durable=False)
    return version


def _wait_for_newest(layout: Layout, name: str, lost: int, took_s: float) -> int:
    """The newest claim as it was noted, after a pause at random; 0 when that is not known.

    ``took_s`` is what it took to be refused: so the pause fits a disk, and a bucket far away.
    """
    sleep(random.uniform(0, min(took_s * 2**lost, _LONGEST_PAUSE_S)))
    return noted_newest(layout, name) or 0


def _claim(layout: Layout, name: str, version: int) -> bool:
    """Whether a number is ours from now on: not claimed before, and nothing stands under it.

    A store that was copied without its claims has versions that nobody claimed.
    """
    place, claim = layout.version(name, version), layout.claims(name) / f"v{version}"
    if files.on_disk(place):
        return not place.exists() and files.create_empty(claim)
    # Asked last: what nobody else may write to any more need not be asked again before it is sent.
    return files.create_empty(claim) and not place.is_dir()


def noted_newest(layout: Layout, name: str) -> int | None:
    """The newest claim as it was noted, as long as no claim came or went since; else None."""
    try:
        version, changed = map(int, layout.newest(name).read_text().split())
        if not files.on_disk(layout.root):
            return version  # it may be late, and then the create finds the next one
        return version if layout.claims(name).stat().st_mtime_ns == changed else None
    except (OSError, ValueError):
        return None


def _list_newest(layout: Layout, name: str) -> int:
    taken = versions_in(layout.claims(name)) + versions_in(layout.name(name))
    return max(taken, default=0)
