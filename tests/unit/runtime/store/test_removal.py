"""Removing artifacts: nothing that others need, and what stays of those that went."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemotron_style.runtime.errors import RefError
from nemotron_style.runtime.store import removal
from nemotron_style.runtime.store.lineage.formats import FORMATS, render
from nemotron_style.runtime.store.lineage.graph import walk
from nemotron_style.runtime.store.record import Artifact, Edge, Producer, Record
from nemotron_style.runtime.store.removal import Family, Removed, find_needed, select
from nemotron_style.runtime.store.store import Store

DIGEST = "sha256:" + "0" * 64


def nothing_in_use() -> Mapping[str, str]:
    return {}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def make(store: Store, name: str, run_id: str = "", **inputs: Artifact) -> Artifact:
    staged = store.stage("test")
    (staged / "weights").write_text(name + run_id)
    producer = Producer(run_id=run_id or f"run-{name}", step="sft/chat", slot="model")
    edges = [artifact.edge(slot) for slot, artifact in inputs.items()]
    return store.commit(staged, name=name, kind="k", producer=producer, inputs=edges)


def remove(store: Store, *refs: str) -> Removed:
    selection = select(store.read_family(), wanted=refs, keep={})
    assert {record.ref for record in selection.going} == set(refs)
    return store.remove(selection.going, find_in_use=nothing_in_use)


# Each artifact is made from some of those before it; which exist, and which are kept, is free.
GRAPHS = st.lists(st.sets(st.integers(0, 14)), min_size=1, max_size=15).map(
    lambda rows: [{one for one in row if one < at} for at, row in enumerate(rows)]
)


def family_of(graph: list[set[int]]) -> Family:
    family = Family()
    for number, parents in enumerate(graph):
        edges = [Edge(slot="in", ref=f"a{one}:v1", kind="k", digest=DIGEST) for one in parents]
        record = Record(
            name=f"a{number}",
            version=1,
            kind="k",
            digest=DIGEST,
            files=(),
            created="",
            inputs=edges,
        )
        family.records[record.ref] = record
        family.parents[record.ref] = {edge.ref for edge in edges}
    return family


@settings(max_examples=200, deadline=None, database=None)
@given(GRAPHS, st.sets(st.integers(0, 14)), st.sets(st.integers(0, 14)))
def test_what_stays_never_loses_an_ancestor(
    graph: list[set[int]], wanted: set[int], kept: set[int]
) -> None:
    family = family_of(graph)
    keep = {f"a{one}:v1": "kept" for one in kept if one < len(graph)}
    selection = select(family, wanted=[f"a{one}:v1" for one in wanted], keep=keep)
    going = [record.ref for record in selection.going]
    assert not set(going) & keep.keys()
    assert set(going) | selection.staying.keys() == family.records.keys()
    assert set(going).isdisjoint(selection.staying)
    for ref in selection.staying:
        assert not family.parents[ref] & set(going), "an ancestor of what stays would go"
    # What nothing needs does go, products first: a removal that is cut off orphans nothing.
    assert set(going) == {f"a{one}:v1" for one in wanted} & family.records.keys() - set(
        find_needed(family.parents, dict.fromkeys(selection.staying, ""))
    )
    for at, ref in enumerate(going):
        assert family.parents[ref].isdisjoint(going[:at]), "a source would go before its product"


@settings(max_examples=5, deadline=None, database=None)
@given(st.lists(st.sets(st.integers(0, 6)), min_size=7, max_size=7), st.integers(0, 6))
def test_a_store_keeps_exactly_what_is_kept_and_its_ancestors(
    tmp_path_factory: pytest.TempPathFactory, graph: list[set[int]], kept: int
) -> None:
    store = Store(tmp_path_factory.mktemp("graph"))
    made: list[Artifact] = []
    for number, parents in enumerate(graph):
        inputs = {f"in{one}": made[one] for one in parents if one < number}
        made.append(make(store, f"a{number}", **inputs))
    before = set(walk(store, made[kept]).nodes)
    family = store.read_family()
    selection = select(family, wanted=family.records, keep={made[kept].ref: "--keep"})
    done = store.remove(selection.going, find_in_use=nothing_in_use)
    assert {artifact.ref for artifact in store.artifacts()} == before
    assert set(done.removed) == {artifact.ref for artifact in made} - before
    assert store.verify_all(deep=True) == (len(before), [])


def test_a_removed_artifact_leaves_its_record_and_its_number(store: Store) -> None:
    data = make(store, "data")
    first = make(store, "model", "run-1", data=data)
    make(store, "model", "run-2", data=data)
    size = sum(file.stat().st_size for file in first.path.iterdir())
    done = remove(store, "model:v1")
    assert (done.removed, done.freed) == (["model:v1"], size)
    assert not first.path.exists()
    assert store.find("model:v1") is None
    assert [each.ref for each in store.artifacts()] == ["data:v1", "model:v2"]
    with pytest.raises(
        RefError, match=r"model:v1: was removed by \S+ at 20.*allowed: v2.*-c default"
    ):
        store.resolve("model:v1")
    with pytest.raises(RefError, match="model:v1: was removed"):
        store.resolve("run:run-1/model")
    with pytest.raises(RefError, match="model:v1: was removed"):
        store.resolve(first.digest[:20])
    tombstone = store.tombstone("model:v1")
    assert tombstone
    assert tombstone.record == first.record
    assert store.verify_all(deep=True) == (2, [])
    store.collect_garbage(grace_s=-1)
    assert store.verify_all(deep=True) == (2, [])


def test_latest_does_not_go_back_to_an_older_version(store: Store) -> None:
    make(store, "model", "run-1")
    make(store, "model", "run-2")
    remove(store, "model:v2")
    for ref in ("model", "model:latest"):
        with pytest.raises(RefError, match=r"model:v2: was removed.*allowed: v1"):
            store.resolve(ref)
    assert store.resolve("model:v1").ref == "model:v1"
    assert make(store, "model", "run-3").ref == "model:v3"
    assert store.resolve("model").ref == "model:v3"


def test_the_same_run_or_adoption_makes_a_new_version(store: Store, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}")
    first = store.adopt(tmp_path / "rows.jsonl", kind="k", name="rows")
    make(store, "model", "run-1")
    remove(store, first.ref, "model:v1")
    assert store.adopt(tmp_path / "rows.jsonl", kind="k", name="rows").ref == "rows:v2"
    assert make(store, "model", "run-1").ref == "model:v2"
    assert store.output_of("run-1", "model") == store.resolve("model:v2")
    with pytest.raises(RefError, match=r"rows:v1: was removed.*artifacts adopt \S+rows.jsonl"):
        store.resolve("rows:v1")
    assert store.verify_all(deep=True) == (2, [])


def test_the_lineage_of_a_removed_artifact_is_still_told(store: Store) -> None:
    data = make(store, "data")
    middle = make(store, "middle", data=data)
    make(store, "top", middle=middle)
    remove(store, "middle:v1", "top:v1")
    tombstone = store.tombstone("top:v1")
    assert tombstone
    up = walk(store, tombstone)
    assert set(up.nodes) == {"top:v1", "middle:v1", "data:v1"}
    assert up.nodes["middle:v1"].record == middle.record
    assert "was removed by" in render(up, "tree").splitlines()[3]
    assert all(render(up, style) for style in FORMATS)
    assert set(walk(store, data, down=True).nodes) == set(up.nodes)


def test_what_is_needed_by_now_is_given_back(store: Store) -> None:
    data = make(store, "data")
    model = make(store, "model", data=data)
    selection = select(store.read_family(), wanted=["data:v1", "model:v1"], keep={})

    def begin() -> Mapping[str, str]:
        assert store.find("model:v1") is None, "whoever looks for it now must not find it"
        return {"model:v1": "run-9 uses it: RUNNING"}

    done = store.remove(selection.going, find_in_use=begin)
    assert done.removed == []
    assert done.kept == {
        "model:v1": "run-9 uses it: RUNNING",
        "data:v1": "model:v1 was made from it",
    }
    assert list(store.artifacts()) == [data, model]
    assert store.verify_all(deep=True) == (2, [])


def test_a_product_that_was_made_meanwhile_keeps_its_source(store: Store) -> None:
    data = make(store, "data")
    selection = select(store.read_family(), wanted=["data:v1"], keep={})
    make(store, "model", data=data)
    done = store.remove(selection.going, find_in_use=nothing_in_use)
    assert (done.removed, done.kept) == ([], {"data:v1": "model:v1 was made from it"})


def test_what_an_unreadable_artifact_was_made_from_stays(store: Store) -> None:
    data = make(store, "data")
    model = make(store, "model", data=data)
    record = model.path / "artifact.json"
    record.chmod(0o644)
    record.write_text("{")
    family = store.read_family()
    selection = select(family, wanted=family.records, keep={})
    assert (selection.going, selection.staying) == ((), {"data:v1": "model:v1 was made from it"})


def test_another_process_at_work_is_left_alone(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(store, "model")
    with monkeypatch.context() as patch:
        patch.setattr(removal, "finish_removals", lambda *_, **__: Removed())
        remove(store, "model:v1")
    problem = "model:v1: its removal was cut off; `nemotron-style artifacts gc` finishes it"
    assert [str(each) for each in store.verify_all(deep=True)[1]] == [problem]
    monkeypatch.setattr(removal, "identify_process", lambda pid: {"pid": 1})
    assert store.finish_removals(find_in_use=nothing_in_use).removed == []
    monkeypatch.setattr(removal, "is_dead", lambda identity: True)
    assert store.finish_removals(find_in_use=nothing_in_use).removed == ["model:v1"]
    assert store.verify_all(deep=True) == (0, [])


def test_several_that_remove_the_same_remove_it_once(store: Store) -> None:
    data = make(store, "data")
    for number in range(4):
        make(store, f"model{number}", data=data)
    family = store.read_family()
    going = select(family, wanted=family.records, keep={"model3:v1": "kept"}).going

    def work(_: int) -> Removed:
        return Store(store.root).remove(going, find_in_use=nothing_in_use)

    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(work, range(4)))
    removed = [ref for each in done for ref in each.removed]
    assert set(removed) == {"model0:v1", "model1:v1", "model2:v1"}
    assert [each.ref for each in store.artifacts()] == ["data:v1", "model3:v1"]
    assert not any(each.skipped for each in done)
    assert store.verify_all(deep=True) == (2, [])
    assert list(store.layout.staging.iterdir()) == []


def test_a_changed_tombstone_is_found_and_hides_the_artifact_still(store: Store) -> None:
    make(store, "model")
    remove(store, "model:v1")
    path = store.layout.removed("model:v1")
    path.chmod(0o644)
    path.write_text(path.read_text().replace("sft/chat", "sft/chess"))
    assert store.find("model:v1") is None
    assert store.tombstone("model:v1") is None
    [problem] = store.verify_all(deep=True)[1]
    assert str(problem).startswith("model:v1: its tombstone cannot be read")
