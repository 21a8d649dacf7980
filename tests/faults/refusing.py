"""A disk that refuses: full, broken or read-only at each file operation of a command in turn."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import time
from pathlib import Path
from typing import Any

from commands import run_command
from disks import Refusals, Room
from killing import make
from nemotron_style.runtime.errors import StepsError
from nemotron_style.runtime.store.layout import is_committed, versions_in
from nemotron_style.runtime.store.store import Store

NUMBERS = (errno.ENOSPC, errno.EIO, errno.EROFS)
SAID = ("there is no room", "are free", "cannot be removed")  # in place of the system's words
COMMANDS = ("commit", "adopt", "gc", "rm")


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
            _answer, found = _try(command, _copy(template, folder / "store"), refusals)
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
            room = Room(mount, unit, units)
            answer, found = _try(command, _copy(template, mount / "store"), room)
            wrong += [f"{command}, room for {units} of {unit}: {each}" for each in found]
            if answer is None:
                break
            tried += 1
    return {"refusals": tried, "wrong": wrong, "seconds": round(time.monotonic() - began, 1)}


def _copy(template: Path, root: Path) -> Path:
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(template, root)
    return root


def _make_template(folder: Path) -> Path:
    """A store with an artifact to keep, one to remove, and a commit that was cut off."""
    template = folder / "template"
    (folder / "rows.jsonl").write_text("{}\n")
    (folder / "data.jsonl").write_text("[]\n")
    store = Store(template)
    store.adopt(folder / "data.jsonl", kind="raw_jsonl", name="data")
    make(store, "r-0", "kept")
    make(store, "r-1", "spare")
    make(store, "r-2", "cut")
    (store.layout.version("cut", 1) / "artifact.json").unlink()
    (store.stage("left") / "x").write_text("x")
    return template


def _try(command: str, root: Path, disk: Refusals | Room) -> tuple[str | None, list[str]]:
    """What a command says on a disk that refuses, and what is wrong then or when it is done again.

    It says None when it did what it should.
    """
    store, rows = Store(root), root.parent / "rows.jsonl"
    before = {artifact.ref: artifact.digest for artifact in store.artifacts()}
    with disk.at_work():
        answer = _carry_out(command, root, rows)
    wrong = _check_answer(answer, disk.number)
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


def _carry_out(command: str, root: Path, rows: Path) -> str | None:
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
    code, out, err = run_command(root, "artifacts", *words, folder=root.parent)
    return None if code == 0 else (err + out).strip() or f"exit code {code}, and not a word"


def _check_answer(answer: str | None, number: int) -> list[str]:
    if answer is None:
        return []
    reason = os.strerror(number)
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
