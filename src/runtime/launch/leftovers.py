"""What ended attempts left in the folders of runs, and nobody will use any more.

An attempt that fails leaves the outputs it had begun; the next attempt of the same run removes
them, but there may never be one. Sealed outputs stay, since only their commit is to be done, and
so do checkpoints, from which the run continues.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from nemotron_style.runtime import atomic
from nemotron_style.runtime.errors import StepsError
from nemotron_style.runtime.launch.status import read_status
from nemotron_style.runtime.run.folder import SEAL, RunFolder
from nemotron_style.runtime.run.listing import scan_runs
from nemotron_style.runtime.run.run_key import key_of_run, run_of_key
from nemotron_style.runtime.store.cache import list_unused
from nemotron_style.runtime.store.gc import Collected, remove
from nemotron_style.runtime.store.store import Store


def collect_leftovers(root: Path, *, grace_s: float) -> Collected:
    """Remove the leftovers of runs that ended, where they are older than ``grace_s`` seconds."""
    done = Collected()
    runs = root / "runs"
    if not runs.is_dir():
        return done
    before = atomic.read_clock(runs) - grace_s
    for unfinished in runs.glob(".*"):  # a run's folder that was never put in place
        _remove_old([unfinished], root, before, done)
    for run in scan_runs(root)[0]:
        try:
            _remove_old(list(_leftovers(run)), root, before, done)
        except (OSError, StepsError) as error:  # a cluster that does not answer, for one
            done.skipped.append(f"{run.run_id}: {error}")
    _remove_old(list(_orphans(root)), root, before, done)
    return done


def collect_copies(store: Store, in_use: Collection[str], *, grace_s: float) -> Collected:
    """Remove local copies of what a bucket holds that nobody used for ``grace_s`` seconds.

    Those of the refs ``in_use`` stay.
    """
    done = Collected()
    used = {artifact.digest for ref in in_use if (artifact := store.find(ref))}
    for copy in list_unused(store.layout.cache, before=time.time() - grace_s, keep=used):
        remove(copy, store.local, done)
    return done


def remove_run(run: RunFolder, store: Store) -> bool:
    """Remove the folder of a run that ended; False when it was begun again meanwhile."""
    if run.outputs is None and run.claim_attempt() is None:  # as a launch does: one of both wins
        return False
    key = key_of_run(run.path, run.plan.step, run.path / "plan.json")
    # Out of sight in one step: a removal that is cut off leaves nothing that looks like a run.
    aside = atomic.unique_path(store.layout.staging, run.run_id)
    atomic.make_dir(aside.parent)
    os.rename(run.path, aside)
    key.unlink(missing_ok=True)
    atomic.remove_tree(aside)
    return True


def _leftovers(run: RunFolder) -> Iterator[Path]:
    """What no attempt of a run needs again; nothing while one is, or may be, under way."""
    last = run.last_attempt
    if last is None or not read_status(run).is_final or (run.outputs is None and last.is_live):
        return
    yield from run.path.glob("attempts/.claim-*")
    yield from run.path.glob("checkpoints/**/.attempt-*")
    for staged in run.path.glob("staging/*"):
        if run.outputs is not None or not (staged / SEAL).exists():
            yield staged


def _orphans(root: Path) -> Iterator[Path]:
    """Keys of runs that are gone, and keys too many of runs that were removed and begun again."""
    for key in (root / "index" / "run").glob("*/*~*"):
        run_dir = root / "runs" / run_of_key(key.name)
        try:
            own = key_of_run(run_dir, key.parent.name, run_dir / "plan.json")
        except (FileNotFoundError, NotADirectoryError):
            yield key
            continue
        except OSError:  # not ours to look into
            continue
        # In a copy of a store times may be lost; then a run keeps the key that it has.
        if own != key and own.exists():
            yield key


def _remove_old(leftovers: list[Path], root: Path, before: float, done: Collected) -> None:
    for leftover in leftovers:
        if atomic.last_change(leftover) < before:
            remove(leftover, root, done)
