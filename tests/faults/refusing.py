"""A disk or a bucket that refuses: full, broken, at each operation of a command in turn."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol
from unittest.mock import patch

from commands import run_command
from disks import Refusals
from disks import Room as FullDisk
from full_bucket import FullBucket, copy_bucket
from killing import make
from nemotron_style.runtime.errors import StepsError
from nemotron_style.runtime.store.layout import is_committed, versions_in
from nemotron_style.runtime.store.store import Store

NUMBERS = (errno.ENOSPC, errno.EIO, errno.EROFS)
SAID = ("there is no room", "are free", "cannot be removed")  # in place of the system's words
COMMANDS = ("commit", "adopt", "gc", "rm")
URL = "memory://refusing"


class Refusing(Protocol):
    """What refuses from here to the end of the block ``at_work``; ``reason`` is then told."""

    reason: str

    def at_work(self) -> AbstractContextManager[Any]: ...


def refuse_each(
    folder: Path, *, step: int = 1, numbers: tuple[int, ...] = NUMBERS
) -> dict[str, Any]:
    """Figures of a disk that refuses at every ``step``-th operation of every command.

    From that operation on, or it alone. Each time: what is there is whole, nothing is lost, the
    command says in a line why it failed, and does what it should once the disk is well again.
    """
    began = time.monotonic()
    template = _make_template(folder)
    wrong: list[str] = []
    tried = 0
    for command, number, lasting in itertools.product(COMMANDS, numbers, (True, False)):
        for first in itertools.count(0, step):
            refusals = Refusals(number, first, lasting=lasting)
            _copy(template, folder / "store")
            _answer, found = _try(command, folder / "store", refusals, folder)
            if not refusals.refused:
                break
            tried += 1
            when = f"{command}, {errno.errorcode[number]} at {first}{' and on' * lasting}"
            wrong += [f"{when}: {each}" for each in found]
    return {"refusals": tried, "wrong": wrong, "seconds": round(time.monotonic() - began, 1)}


def fill_each(folder: Path, mount: Path, *, step: int = 1) -> dict[str, Any]:
    """Figures of a tmpfs at ``mount`` with room for ``step`` more pages or files each time.

    The checks are those of :func:`refuse_each`; here the kernel itself refuses, writes too.
    """
    began = time.monotonic()
    template = _make_template(folder)
    (mount / "rows.jsonl").write_text("{}\n")
    wrong: list[str] = []
    tried = 0
    for command, unit in itertools.product(COMMANDS, ("size", "nr_inodes")):
        for units in itertools.count(0, step):
            room = FullDisk(mount, unit, units)
            _copy(template, mount / "store")
            answer, found = _try(command, mount / "store", room, mount)
            wrong += [f"{command}, room for {units} of {unit}: {each}" for each in found]
            if answer is None:
                break
            tried += 1
    return {"refusals": tried, "wrong": wrong, "seconds": round(time.monotonic() - began, 1)}


def refuse_each_in_bucket(
    folder: Path, *, step: int = 1, codes: tuple[str, ...] = FullBucket.CODES
) -> dict[str, Any]:
    """Figures of a bucket that is full, or asks for patience, at each request of every command.

    And of a full disk below the scratch folder of a store in a bucket.
    """
    began = time.monotonic()
    wrong: list[str] = []
    tried = 0
    scratch = folder / "scratch"
    with patch.dict(os.environ, {"NEMOTRON_STYLE_SCRATCH": str(scratch)}), FullBucket.in_place():
        _make_template(folder, f"{URL}/template")
        shutil.copytree(scratch, folder / "template")
        places: list[tuple[str, Any]] = [(code, FullBucket) for code in codes]
        for command, (what, place), lasting in itertools.product(
            COMMANDS, [*places, ("scratch", Refusals)], (True, False)
        ):
            for first in itertools.count(0, step):
                refusals = place(
                    errno.ENOSPC if place is Refusals else what, first, lasting=lasting
                )
                _copy(folder / "template", scratch)
                for each in scratch.glob("refusing-template-*"):
                    each.rename(Store(f"{URL}/store").local)
                copy_bucket(f"{URL}/template", f"{URL}/store")
                _answer, found = _try(command, f"{URL}/store", refusals, folder)
                if not refusals.refused:
                    break
                tried += 1
                when = f"{command}, {what} at {first}{' and on' * lasting}"
                wrong += [f"{when}: {each}" for each in found]
    return {"refusals": tried, "wrong": wrong, "seconds": round(time.monotonic() - began, 1)}


def _copy(template: Path, root: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(template, root)


def _make_template(folder: Path, template: str | Path | None = None) -> Path:
    """A store with an artifact to keep, one to remove, and a commit that was cut off."""
    template = template or folder / "template"
    (folder / "rows.jsonl").write_text("{}\n")
    (folder / "data.jsonl").write_text("[]\n")
    store = Store(template)
    store.adopt(folder / "data.jsonl", kind="raw_jsonl", name="data")
    make(store, "r-0", "kept")
    make(store, "r-1", "spare")
    make(store, "r-2", "cut")
    (store.layout.version("cut", 1) / "artifact.json").unlink()
    (store.stage("left") / "x").write_text("x")
    return folder / "template"


def _try(
    command: str, root: str | Path, disk: Refusing, folder: Path
) -> tuple[str | None, list[str]]:
    """What a command says on a disk that refuses, and what is wrong then or when it is done again.

    It says None when it did what it should.
    """
    store, rows = Store(root), folder / "rows.jsonl"
    before = {artifact.ref: artifact.digest for artifact in store.artifacts()}
    with disk.at_work():
        answer = _carry_out(command, root, rows)
    wrong = _check_answer(answer, disk.reason)
    gone = {"spare:v1"} if command == "rm" else set()
    wrong += _check_whole(store, {ref: before[ref] for ref in before.keys() - gone})
    again = _carry_out(command, root, rows)
    if again is not None and "was removed" not in again:  # a removal that was finished already
        wrong.append(f"cannot be done again: {again}")
    _carry_out("gc", root, rows)
    expected = {"data:v1", "kept:v1", "cut:v1", "spare:v1"} - gone
    names = {artifact.record.name for artifact in store.artifacts()}
    names_expected = {ref.partition(":")[0] for ref in expected}
    names_expected |= {"commit": {"new"}, "adopt": {"rows"}}.get(command, set())
    if names != names_expected:
        wrong.append(f"there is {sorted(names)} and not {sorted(names_expected)}")
    wrong += [str(problem) for problem in store.verify_all(deep=True)[1]]
    wrong += [f"left: {path}" for path in _leftovers(store)]
    return answer, wrong


def _carry_out(command: str, root: str | Path, rows: Path) -> str | None:
    """Do one command; None, or what it said when it did not succeed."""
    if command == "commit":
        store = Store(root)
        try:
            if store.finish_commit("r-3", "model") is None:
                make(store, "r-3", "new")
        except (OSError, StepsError) as error:
            return str(error)
        return None
    words = {
        "adopt": ["adopt", str(rows), "--kind", "raw_jsonl", "--name", "rows"],
        "gc": ["gc", "--grace", "0"],
        "rm": ["rm", "spare:v1", "--yes"],
    }[command]
    code, out, err = run_command(root, "artifacts", *words, folder=rows.parent)
    return None if code == 0 else (err + out).strip() or f"exit code {code}, and not a word"


def _check_answer(answer: str | None, reason: str) -> list[str]:
    if answer is None:
        return []
    known = reason in answer or any(word in answer for word in SAID)
    return [] if known and "Traceback" not in answer else [f"said {answer!r}"]


def _check_whole(store: Store, expected: dict[str, str]) -> list[str]:
    artifacts = list(store.artifacts())
    wrong = [str(one) for each in artifacts for one in store.verify(each, deep=True)]
    there = {artifact.ref: artifact.digest for artifact in artifacts}
    return wrong + [f"{ref} is lost" for ref in expected if there.get(ref) != expected[ref]]


def _leftovers(store: Store) -> list[Path]:
    layout = store.layout
    left = [path for place in (layout.staging, layout.index / "intent") for path in place.iterdir()]
    for name in layout.artifacts.iterdir():
        versions = [name / f"v{version}" for version in versions_in(name)]
        left += [version for version in versions if not is_committed(version)]
    return left
