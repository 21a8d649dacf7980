"""A store whose writer dies at every single file operation (``make faults``: by SIGKILL too)."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nemotron_style.runtime.store.digest import File, digest_tree
from nemotron_style.runtime.store.index import key_of
from nemotron_style.runtime.store.layout import is_committed, versions_in
from nemotron_style.runtime.store.lineage.graph import walk
from nemotron_style.runtime.store.record import Artifact, Producer, render_record
from nemotron_style.runtime.store.removal import select
from nemotron_style.runtime.store.staged import share
from nemotron_style.runtime.store.store import Store

SHARED = "the same in all"
OPERATIONS = ("open", "mkdir", "rename", "replace", "link", "unlink", "rmdir", "fsync", "chmod")


class Crash(BaseException):
    """Not an Exception, so that nothing on the way handles it."""


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process dies here, not the machine: what was written is in the kernel's hands."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def _small_files_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the outputs of all runs have one file in common."""
    monkeypatch.setattr(share, "SMALLEST", len(SHARED))


@contextmanager
def crash_before(number: int) -> Iterator[None]:
    """Let ``number`` file operations happen and none after: as if the process were gone.

    Later ones fail as well, so a ``finally`` cannot tidy up what a dead process would leave.
    """
    left = number

    def guard(real: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise Crash
            return real(*args, **kwargs)

        return operation

    with pytest.MonkeyPatch.context() as patch:
        for name in OPERATIONS:
            patch.setattr(os, name, guard(getattr(os, name)))
        yield


def survives(action: Callable[[], object], number: int) -> bool:
    """Run ``action`` with a crash before operation ``number``; True when it never got there."""
    try:
        with crash_before(number):
            action()
    except Crash:
        return False
    return True


def prepare(root: Path) -> tuple[Store, Path]:
    """A store with an adopted input, one artifact of another run, and an output in the making."""
    template = root.with_name("template")
    if not template.exists():
        store = Store(template)
        (template / "runs").mkdir(parents=True)
        (template / "runs" / "rows.jsonl").write_text("{}\n")
        store.adopt(template / "runs" / "rows.jsonl", kind="raw_jsonl", name="data")
        write_output(template / "runs" / "r-0")
        finish_run(store, template / "runs" / "r-0")
        write_output(template / "runs" / "r-1")
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(template, root)
    return Store(root), root / "runs" / "r-1"


def write_output(place: Path) -> Path:
    (place / "sub").mkdir(parents=True)
    (place / "a.txt").write_text(place.name)
    (place / "sub" / "b.txt").write_text(SHARED)
    return place


def finish_run(store: Store, staged: Path) -> Artifact:
    """What a worker does that finds a sealed output: finish the commit, or make it."""
    producer = Producer(run_id=staged.name, step="a/b", slot="model")
    settled = store.finish_commit(staged.name, "model")
    inputs = [store.resolve("data").edge("data")]
    return settled or store.commit(staged, name="m", kind="k", producer=producer, inputs=inputs)


def check_whole(store: Store) -> None:
    """Everything that can be seen is whole, and what was committed before is there."""
    assert store.resolve("data:v1")
    assert store.resolve("m:v1").record.producer
    for artifact in store.artifacts():
        assert store.verify(artifact, deep=True) == []
        assert store.check_keys(artifact.path) == []
    output = store.output_of("r-1", "model")
    assert output is None or output in list(store.artifacts("m"))


def check_finished(store: Store, artifact: Artifact, digest: str) -> None:
    """The run has exactly one output, and nothing but it is left after tidying up."""
    check_whole(store)
    made = [each for each in store.artifacts("m") if each.record.producer.run_id == "r-1"]  # type: ignore[union-attr]
    assert made == [artifact]
    assert artifact.digest == digest
    names = [each.path / "sub" / "b.txt" for each in (store.resolve("m:v1"), artifact)]
    assert os.path.samefile(*names), "equal files are stored once, however often a commit began"
    assert store.output_of("r-1", "model") == artifact == store.resolve("m")
    lineage = walk(store, store.resolve("data"), down=True)
    assert set(lineage.nodes) == {"data:v1", "m:v1", artifact.ref}
    store.collect_garbage(grace_s=-1)
    check_clean(store)
    assert store.output_of("r-1", "model") == artifact


def check_clean(store: Store) -> None:
    assert list(store.layout.staging.iterdir()) == []
    assert list((store.layout.index / "intent").iterdir()) == []
    for name in store.layout.artifacts.iterdir():
        assert all(is_committed(name / f"v{version}") for version in versions_in(name))


@pytest.mark.usefixtures("_small_files_are_shared")
def test_a_commit_may_die_before_any_operation(tmp_path: Path) -> None:
    number, done = 0, False
    while not done:
        store, staged = prepare(tmp_path / "store")
        digest = digest_tree(staged)[0]
        done = survives(lambda: finish_run(store, staged), number)  # noqa: B023
        fresh = Store(store.root)
        check_whole(fresh)
        check_finished(fresh, finish_run(fresh, staged), digest)
        number += 1
    assert number > 40


@pytest.mark.usefixtures("_small_files_are_shared")
def test_finishing_may_die_as_well(tmp_path: Path) -> None:
    chance = random.Random(1)
    for _ in range(40):
        store, staged = prepare(tmp_path / "store")
        digest = digest_tree(staged)[0]
        for _ in range(3):
            survives(lambda: finish_run(Store(store.root), staged), chance.randrange(50))  # noqa: B023
            check_whole(store)
        check_finished(store, finish_run(Store(store.root), staged), digest)


def test_a_crash_leaves_work_for_the_garbage_collector_only(tmp_path: Path) -> None:
    number, done = 0, False
    while not done:
        store, staged = prepare(tmp_path / "store")
        done = survives(lambda: finish_run(store, staged), number)  # noqa: B023
        moved = not staged.exists()
        Store(store.root).collect_garbage(grace_s=-1)
        check_whole(store)
        check_clean(store)
        # What was renamed away from the run is never lost: it was finished.
        assert (store.output_of("r-1", "model") is not None) == moved
        number += 1


@pytest.mark.usefixtures("_small_files_are_shared")
def test_an_adoption_may_die_before_any_operation(tmp_path: Path) -> None:
    source = write_output(tmp_path / "source")
    number, done = 0, False
    while not done:
        store, _ = prepare(tmp_path / "store")
        done = survives(lambda: store.adopt(source, kind="k", name="set"), number)  # noqa: B023
        check_whole(store)
        adopted = Store(store.root).adopt(source, kind="k", name="set")
        assert list(store.artifacts("set")) == [adopted]
        check_whole(store)
        store.collect_garbage(grace_s=-1)
        check_clean(store)
        number += 1
    assert number > 40


def test_collecting_garbage_may_die_before_any_operation(tmp_path: Path) -> None:
    number, done = 0, False
    while not done:
        store, staged = prepare(tmp_path / "store")
        survives(lambda: finish_run(store, staged), 25)  # noqa: B023
        half = store.layout.version("m", 9)
        shutil.copytree(tmp_path / "store" / "artifacts" / "m" / "v1", half)
        (half / "artifact.json").unlink()
        intend(store, half)
        done = survives(lambda: store.collect_garbage(grace_s=-1), number)  # noqa: B023
        check_whole(store)
        store.collect_garbage(grace_s=-1)
        check_whole(store)
        check_clean(store)
        number += 1
    assert number > 5


def test_mending_may_die_before_any_operation(tmp_path: Path) -> None:
    number, done = 0, False
    while not done:
        store, staged = prepare(tmp_path / "store")
        second = finish_run(store, staged)
        third = finish_run(store, write_output(store.root / "runs" / "r-2"))
        first = store.resolve("m:v1")
        before = {each.ref: each.digest for each in store.artifacts()}
        for path, target in ((first.path, "aside"), (second.path, first.path.name)):
            path.rename(path.with_name(target))
        first.path.with_name("aside").rename(second.path)  # two versions are swapped
        (third.path / "artifact.json").unlink()
        ours, theirs = (store.layout.output(run, "model") for run in ("r-1", "r-2"))
        theirs.replace(ours)  # one key stands in the place of another
        done = survives(lambda: store.collect_garbage(grace_s=-1), number)  # noqa: B023
        store.collect_garbage(grace_s=-1)
        assert {each.ref: each.digest for each in store.artifacts()} == before
        assert store.verify_all(deep=True) == (4, [])
        check_clean(store)
        number += 2
    assert number > 20


@pytest.mark.usefixtures("_small_files_are_shared")
def test_a_removal_may_die_before_any_operation(tmp_path: Path) -> None:
    number, done = 0, False
    while not done:
        store, staged = prepare(tmp_path / "store")
        finish_run(store, staged)
        family = store.read_family()
        going = select(family, wanted=["m:v1", "m:v2", "data:v1"], keep={}).going
        assert going[-1].ref == "data:v1"
        done = survives(lambda: store.remove(going, find_in_use=dict), number)  # noqa: B023
        # Whole or gone, and never a product without what it was made from.
        left = {each.ref for each in store.artifacts()}
        assert all(store.verify(each, deep=True) == [] for each in store.artifacts())
        assert left <= {"data:v1"} or "data:v1" in left
        store.finish_removals(find_in_use=dict)
        hidden = {record.ref for record in going} - left
        assert {ref for ref in hidden if store.tombstone(ref)} == hidden
        assert {each.ref for each in store.artifacts()} == left
        assert store.verify_all(deep=True) == (len(left), [])
        store.collect_garbage(grace_s=-1)
        check_clean(store)
        number += 1
    assert number > 20


def intend(store: Store, half: Path) -> None:
    """Write the intent that a commit to this directory would have left, of other files."""
    record = store.resolve("m:v1").record
    producer = Producer(run_id="r-9", step="a/b", slot="model")
    files = (*record.files, File("lost", 1, "0" * 64))
    record = record.model_copy(update={"version": 9, "producer": producer, "files": files})
    intent = store.layout.intent(key_of(store.layout, record), record.ref)
    intent.write_text(render_record(record))
