"""What is read of a record's beginning is what the whole record says, or nothing."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from nemotron_style.runtime.store.digest import File
from nemotron_style.runtime.store.lineage.graph import walk
from nemotron_style.runtime.store.lineage.record_head import Head, parse_head, read_head
from nemotron_style.runtime.store.record import Edge, Record, render_record
from nemotron_style.runtime.store.store import Store

_DIGESTS = st.integers(0, 255).map(lambda n: f"sha256:{n:064x}")
_TEXTS = st.text(max_size=20) | st.sampled_from(
    ['\n  "inputs": [\n    {}\n  ]', ',\n  "files": [', '"seal": "' + "0" * 64, "]", "}\n"]
)
_KINDS = st.sampled_from(["checkpoint_hf", "eigene Zeilen, größere", "a"])


def _edges(kinds: st.SearchStrategy[str]) -> st.SearchStrategy[Edge]:
    slots, refs = st.sampled_from(["model", "data.1"]), st.sampled_from(["a:v1", "b-c:v12"])
    return st.builds(Edge, slot=slots, ref=refs, kind=kinds, digest=_DIGESTS)


_RECORDS = st.builds(
    Record,
    name=st.sampled_from(["model", "m.2"]),
    version=st.integers(1, 10**6),
    kind=_KINDS,
    digest=_DIGESTS,
    files=st.lists(st.builds(File, path=_TEXTS, size=st.just(1), sha256=_TEXTS), max_size=2).map(
        tuple
    ),
    created=_TEXTS,
    inputs=st.lists(_edges(_KINDS), max_size=3).map(tuple),
    config=st.dictionaries(_TEXTS, _TEXTS, max_size=2),
)


def _head(record: Record) -> Head:
    inputs = [(each.slot, each.ref, each.kind, each.digest) for each in record.inputs]
    return Head(record.ref, record.kind, record.digest, inputs)


@settings(max_examples=60, deadline=None)
@given(_RECORDS)
def test_the_head_is_what_the_record_says(record: Record) -> None:
    assert parse_head(render_record(record).encode()) == _head(record)


@settings(max_examples=30, deadline=None)
@given(_RECORDS, _TEXTS, st.lists(_edges(_TEXTS), max_size=2))
def test_a_record_with_other_words_is_read_as_a_whole(
    record: Record, kind: str, edges: list[Edge]
) -> None:
    record = record.model_copy(update={"kind": kind, "inputs": tuple(edges)})
    assert parse_head(render_record(record).encode()) in (_head(record), None)


@settings(max_examples=60, deadline=None)
@given(_RECORDS, st.data())
def test_of_a_record_that_changed_nothing_is_believed(record: Record, data: st.DataObject) -> None:
    text = bytearray(render_record(record).encode())
    at = data.draw(st.integers(0, len(text) - 1))
    text[at] ^= 1 << data.draw(st.integers(0, 7))
    assert parse_head(bytes(text)) is None
    assert parse_head(bytes(text[: data.draw(st.integers(0, len(text) - 1))])) is None


def test_what_is_no_record_is_left_to_whoever_can_say_why(tmp_path: Path) -> None:
    assert read_head(str(tmp_path / "nothing")) is None
    assert read_head(str(tmp_path)) is None
    os.mkfifo(tmp_path / "pipe")
    assert read_head(str(tmp_path / "pipe")) is None


def test_a_lineage_is_the_same_whichever_way_records_are_read(
    tmp_path: Path, monkeypatch: object
) -> None:
    store = Store(tmp_path / "store")
    made = []
    for number in range(6):
        staged = store.stage("x")
        (staged / "file").write_text(str(number))
        edges = [each.edge(f"slot{index}") for index, each in enumerate(made[-2:])]
        made.append(store.commit(staged, name=f"m{number % 2}", kind="k", inputs=edges))
    store.remove([made[5].record], find_in_use=dict)
    (made[2].path / "artifact.json").chmod(0o644)
    (made[2].path / "artifact.json").write_text("damaged")
    fast = [walk(store, made[4], down=way) for way in (False, True)]
    fast.append(walk(store, made[0], down=True))
    module = "nemotron_style.runtime.store.lineage.graph.read_head"
    monkeypatch.setattr(module, lambda path: None)  # type: ignore[attr-defined]
    whole = [walk(store, made[4], down=way) for way in (False, True)]
    whole.append(walk(store, made[0], down=True))
    for ours, theirs in zip(fast, whole, strict=True):
        assert ours.links == theirs.links
        assert list(ours.nodes) == list(theirs.nodes)
        for ref, node in theirs.nodes.items():
            assert (ours.nodes[ref].record, ours.nodes[ref].removed) == (node.record, node.removed)
