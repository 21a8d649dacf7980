"""Which runs a store has, and which one a word names.

The newest run is the one whose plan was written last. The keys of the index say when that was, so
among ten thousand runs only those that are shown are looked at.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from itertools import islice
from pathlib import Path

from nemotron_style.runtime.errors import Problem, RefError, UsageError, shorten, suggest
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.run.run_key import (
    keys_of_step,
    list_keys,
    render_key,
    run_of_key,
    run_prefix,
)
from nemotron_style.runtime.store.store import Store


def find_recent_runs(store: Path, step: str, limit: int) -> list[RunFolder]:
    """The newest runs of a step, by keys of the index: as fast with ten thousand runs as with ten.

    A run of an earlier version has no key. So these are all runs only where there are none: then
    every folder was looked at.
    """
    try:
        keys = sorted(os.listdir(keys_of_step(store, step)), reverse=True)
    except (FileNotFoundError, NotADirectoryError):
        keys = []
    runs = (RunFolder(store / "runs" / run_of_key(key)) for key in keys)
    # Of a launch that was cut off only the key is left.
    found = list(islice((run for run in runs if run.exists), limit))
    return found or list_runs(store, step=step, limit=limit)


def list_runs(store: Path, *, step: str = "", limit: int = 0) -> list[RunFolder]:
    """The runs of a store, or of one of its steps, the newest plan first; see ``scan_runs``."""
    return scan_runs(store, step=step, limit=limit)[0]


def scan_runs(
    store: Path, *, step: str = "", limit: int = 0
) -> tuple[list[RunFolder], list[Problem], int]:
    """The runs of a store, the newest plan first; what cannot be read of it; how many more.

    With a ``limit`` no more are looked at than that, where keys say which are the newest.
    """
    folder = store / "runs"
    names = _list_names(folder, step)
    newest = _find_newest(store, names, limit) if 0 < limit < len(names) else None
    if newest:
        return [RunFolder(folder / name) for name in newest[0]], [], newest[1] - limit
    planned, unreadable = _read_times(folder, names)
    runs = [RunFolder(folder / name) for _, name in sorted(planned, reverse=True)]
    shown = runs[: limit or None]
    return shown, unreadable, len(runs) - len(shown)


def find_run(store: Store, word: str) -> RunFolder:
    """The run that ``word`` names: an id or its unique prefix, ``latest``, or an artifact it made.

    Raises ``RefError`` when there is none, or more than one.
    """
    folder = store.local / "runs"
    if word == "latest" and (newest := list_runs(store.local, limit=1)):
        return newest[0]
    begun = (name for name in _list_names(folder, "") if name.startswith(word))
    planned, hidden = _read_times(folder, begun)
    runs = [run_id for _, run_id in planned]
    fits = [word] if word in runs else runs
    if not fits:
        with suppress(RefError):
            named = store.resolve(word)
            producer = named.record.producer
            if producer is None:
                what = f"no run made {named.ref}: it was adopted"
                raise UsageError(Problem(where="RUN", what=what, got=shorten(repr(word))))
            fits = [run_id for _, run_id in _read_times(folder, [producer.run_id])[0]]
    if hidden and not fits:
        raise RefError(hidden)
    if len(fits) != 1:
        what = f"{len(fits)} runs begin so" if fits else "no such run"
        allowed, got = ", ".join(sorted(fits)[:10]), shorten(repr(word))
        known = [run.run_id for run in list_runs(store.local)]
        fix = suggest(word, known) or "`nemotron-style runs list` names them"
        fix = fix if known else f"there are no runs in {store.local}"
        raise RefError(Problem(where="RUN", what=what, got=got, allowed=allowed, fix=fix))
    return RunFolder(folder / fits[0])


def describe_unreadable(run_id: str, error: OSError) -> Problem:
    """What to say of a run that is passed over."""
    what = f"cannot be read and is passed over: {error.strerror or error}"
    return Problem(where=run_id, what=what, got=str(error.filename or ""))


def _list_names(folder: Path, step: str) -> set[str]:
    """Folders that may be those of runs, or of one step's runs."""
    names = os.listdir(folder) if folder.is_dir() else []
    if not step:
        return {name for name in names if not name.startswith(".")}
    prefix = f"{run_prefix(step)}-"
    # Another step's id may begin with this one's.
    return {name for name in names if name.startswith(prefix) and len(name) == len(prefix) + 12}


def _read_times(folder: Path, names: Iterable[str]) -> tuple[list[tuple[int, str]], list[Problem]]:
    """When the plan of each run was written (ns), and the run's name; and what cannot be read."""
    planned: list[tuple[int, str]] = []
    unreadable: list[Problem] = []
    for name in sorted(names):
        try:  # as text: with ten thousand runs, objects for paths would take most of the time
            planned.append((os.stat(f"{folder}/{name}/plan.json").st_mtime_ns, name))
        except (FileNotFoundError, NotADirectoryError):
            pass  # a folder that has no plan yet
        except OSError as error:
            unreadable.append(describe_unreadable(name, error))
    return planned, unreadable


def _find_newest(store: Path, names: set[str], limit: int) -> tuple[list[str], int] | None:
    """The ``limit`` newest of these runs, and how many there are; None where keys cannot tell."""
    runs = store / "runs"
    try:
        keys = list_keys(store)
    except OSError:
        return None
    unkeyed = names.difference(map(run_of_key, keys))  # of an earlier version
    planned, unreadable = _read_times(runs, unkeyed)
    if unreadable:
        return None
    keys += [render_key(*each) for each in planned]
    newest, left = [], set(names)
    for key in sorted(keys, reverse=True):
        if (name := run_of_key(key)) in left:  # else it is gone, or has a later key
            left.remove(name)
            planned_at, _ = _read_times(runs, [name])
            if [render_key(*each) for each in planned_at] != [key]:
                return None  # a copy of a store that lost its times, or a run that lost its plan
            newest.append(name)
        if len(newest) == limit:
            return newest, len(names) - len(unkeyed) + len(planned)
    return None
