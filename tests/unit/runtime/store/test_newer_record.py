"""Records that a newer version of the program wrote: named, never read, mended or replaced."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nemotron_style.runtime.errors import NewerRecord
from nemotron_style.runtime.store.index import key_of
from nemotron_style.runtime.store.layout import Layout
from nemotron_style.runtime.store.record import Artifact, Producer, render_sealed
from nemotron_style.runtime.store.removal import select
from nemotron_style.runtime.store.store import Store

SAID = r"a newer nemotron-style wrote the record \(schema 2, this reads 1\); upgrade"


def make(store: Store, name: str, *inputs: Artifact) -> Artifact:
    staged = store.stage("test")
    (staged / "weights").write_text(name)
    producer = Producer(run_id=f"run-{name}", step="a/b", slot="out")
    edges = [artifact.edge("in") for artifact in inputs]
    return store.commit(staged, name=name, kind="k", producer=producer, inputs=edges)


def make_newer(path: Path) -> None:
    body = json.loads(path.read_text())
    del body["seal"]
    path.chmod(0o644)
    path.write_text(render_sealed({**body, "schema_version": 2, "brand_new": {"seed": 1}}))


def age(artifact: Artifact, layout: Layout) -> None:
    """Let a newer version have committed it."""
    make_newer(artifact.path / "artifact.json")
    make_newer(key_of(layout, artifact.record))


@contextmanager
def unchanged(root: Path) -> Iterator[None]:
    """Nothing that is there may change or go; what is staged may."""

    def read() -> dict[str, bytes]:
        return {
            str(path): path.read_bytes()
            for top in ("artifacts", "index")
            for path in (root / top).rglob("*")
            if path.is_file()
        }

    before = read()
    yield
    assert before.items() <= read().items()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_tidying_up_leaves_every_byte_of_it(store: Store) -> None:
    first = make(store, "first")
    middle = make(store, "middle", first)
    make(store, "last", middle)
    age(first, store.layout)
    age(middle, store.layout)
    with unchanged(store.root):
        done = store.collect_garbage(grace_s=-1)
    assert (done.removed, done.finished, done.keys_written) == ([], [], 0)
    assert len(done.skipped) == 4  # each artifact's record, and the decision of each


def test_what_another_version_decided_is_not_put_in_its_place(store: Store) -> None:
    artifact = make(store, "first")
    make_newer(artifact.path / "artifact.json")  # the decision is of this version
    with unchanged(store.root):
        store.collect_garbage(grace_s=-1)


def test_one_that_was_cut_off_is_left_for_its_own_version(store: Store) -> None:
    artifact = make(store, "first")
    intent = store.layout.intent(key_of(store.layout, artifact.record), artifact.ref)
    intent.write_text((artifact.path / "artifact.json").read_text())
    make_newer(intent)
    (artifact.path / "artifact.json").unlink()
    make_newer(key_of(store.layout, artifact.record))
    with unchanged(store.root):
        done = store.collect_garbage(grace_s=-1)
    assert [line for line in done.skipped if "newer nemotron-style" in line] == done.skipped != []


def test_the_same_content_and_the_same_run_are_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    age(store.adopt(tmp_path / "rows.jsonl", kind="k", name="rows"), store.layout)
    age(make(store, "model"), store.layout)
    with unchanged(store.root):
        with pytest.raises(NewerRecord, match=SAID):
            store.adopt(tmp_path / "rows.jsonl", kind="k", name="rows")
        with pytest.raises(NewerRecord, match=SAID):
            make(store, "model")
        with pytest.raises(NewerRecord, match=SAID):
            store.output_of("run-model", "out")  # else a planner would make it again


def test_readers_name_it_once_and_keep_what_it_was_made_from(store: Store) -> None:
    first = make(store, "first")
    middle = make(store, "middle", first)
    age(middle, store.layout)
    artifacts, problems, _ = store.list_artifacts()
    assert [each.ref for each in artifacts] == ["first:v1"]
    assert [problem.what for problem in problems] == [
        "a newer nemotron-style wrote the record (schema 2, this reads 1)"
    ]
    with pytest.raises(NewerRecord, match=SAID):
        store.resolve("middle")
    checked, found = store.verify_all(deep=True)
    assert (checked, [problem.what for problem in found]) == (2, [problems[0].what] * 2)
    family = store.read_family()
    assert select(family, wanted=family.records, keep={}).going == ()
