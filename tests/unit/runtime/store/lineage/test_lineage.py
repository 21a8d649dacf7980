"""Lineage: followed by edges, told in five ways."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from nemotron_style.runtime.store.index import read_edges
from nemotron_style.runtime.store.lineage import graph
from nemotron_style.runtime.store.lineage.formats import FORMATS, render
from nemotron_style.runtime.store.lineage.graph import Lineage, Link, Node, around, to_dict, walk
from nemotron_style.runtime.store.lineage.record_head import Head, read_head
from nemotron_style.runtime.store.lineage.text import digest_config
from nemotron_style.runtime.store.record import Artifact, Producer
from nemotron_style.runtime.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def adopt(store: Store, name: str, text: str = "rows") -> Artifact:
    source = store.root.parent / "rows.jsonl"
    source.write_text(text)
    return store.adopt(source, kind="raw_jsonl", name=name)


def make(store: Store, name: str, *, slot: str = "model", **inputs: Artifact) -> Artifact:
    staged = store.stage("test")
    (staged / "a").write_text(name)
    attempts = ({"number": 1, "state": "failed"}, {"number": 2, "state": "completed"})
    producer = Producer(
        run_id=f"run-{name.split('.')[0]}", step="sft/chat", slot=slot, attempts=attempts
    )
    return store.commit(
        staged,
        name=name,
        kind="checkpoint_hf",
        producer=producer,
        inputs=[artifact.edge(slot) for slot, artifact in inputs.items()],
        config={"lr": 1e-3, "name": name},
        code={"version": "0.1.0", "commit": "c0ffee" * 6, "difference": "d1ff"},
    )


@pytest.fixture
def diamond(store: Store) -> Artifact:
    data = adopt(store, "data")
    left, right = make(store, "left", data=data), make(store, "right", data=data)
    return make(store, "top", policy=left, reference=right)


def test_the_tree_tells_every_node_once_in_full(store: Store, diamond: Artifact) -> None:
    text = render(walk(store, diamond), "tree")
    lines = text.splitlines()
    assert lines[0].startswith("top:v1  checkpoint_hf  ")
    config = digest_config(diamond.record)
    told = f"made by sft/chat@default (run-top), code 0.1.0 c0ffeec0ffee+changes, config {config}"
    assert lines[1] == f"│   {told}"
    assert lines[2].startswith("├── policy: left:v1")
    assert lines[4].startswith("│   └── data: data:v1  raw_jsonl  ")
    assert lines[5] == f"│           adopted from {store.root.parent}/rows.jsonl"
    assert lines[6].startswith("└── reference: right:v1")
    assert lines[8].startswith("    └── data: data:v1")
    assert lines[8].endswith("(shown above)")
    assert len(lines) == 9


def test_down_is_the_same_graph_the_other_way(store: Store, diamond: Artifact) -> None:
    up = walk(store, diamond)
    down = walk(store, store.resolve("data"), down=True)
    assert set(up.nodes) == set(down.nodes) == {"top:v1", "left:v1", "right:v1", "data:v1"}
    assert {*up.links} == {*down.links}
    assert len(up.links) == 4
    assert render(down, "tree").splitlines()[2].startswith("├── data: left:v1")


def test_everything_is_in_the_json(store: Store, diamond: Artifact) -> None:
    document = json.loads(render(walk(store, diamond), "json"))
    assert document == to_dict(walk(store, diamond))
    nodes = {node["ref"]: node for node in document["nodes"]}
    assert nodes["left:v1"]["record"]["config"] == {"lr": 1e-3, "name": "left"}
    assert nodes["top:v1"]["record"]["producer"]["attempts"][0]["state"] == "failed"
    assert {"slot": "policy", "from": "left:v1", "to": "top:v1"} in document["edges"]
    assert document["direction"] == "up"


def test_equal_content_under_two_names_stays_two_nodes(store: Store) -> None:
    one, two = adopt(store, "one"), adopt(store, "two")
    assert one.digest == two.digest
    made = make(store, "made", first=one, second=two)
    only = make(store, "only", first=one)
    assert set(walk(store, made).nodes) == {"made:v1", "one:v1", "two:v1"}
    assert set(walk(store, two, down=True).nodes) == {"two:v1", "made:v1"}
    assert set(walk(store, one, down=True).nodes) == {"one:v1", "made:v1", "only:v1"}
    assert list(read_edges(store.layout, "up", only.digest, only.ref)) == [("first", "one:v1")]


def test_an_input_that_is_gone_is_still_told(store: Store, diamond: Artifact) -> None:
    data = store.resolve("data")
    (data.path / "artifact.json").unlink()
    lineage = walk(store, diamond)
    assert lineage.nodes["data:v1"].digest == data.digest
    assert "no longer in the store" in render(lineage, "tree")
    assert {"data:v1"} == {n["ref"] for n in to_dict(lineage)["nodes"] if n["missing"]}
    assert all(render(lineage, style) for style in FORMATS)


def test_other_content_under_the_same_ref_is_not_the_input(
    store: Store, diamond: Artifact, tmp_path: Path
) -> None:
    other = Store(tmp_path / "other")
    adopt(other, "data", "other rows")
    (store.root / "artifacts" / "data").rename(tmp_path / "away")
    (other.root / "artifacts" / "data").rename(store.root / "artifacts" / "data")
    assert walk(store, diamond).nodes["data:v1"].record is None


def test_lineage_reads_only_what_it_reaches(
    store: Store, diamond: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(10):
        make(store, f"unrelated.{number}", slot=f"s{number}")
    read: list[str] = []

    def read_and_tell(path: str) -> Head | None:
        read.append(Path(path).parts[-3])
        return read_head(path)

    monkeypatch.setattr("nemotron_style.runtime.store.lineage.graph.read_head", read_and_tell)
    monkeypatch.setattr(Store, "list_artifacts", None)
    walk(store, diamond)
    walk(store, diamond, down=True)
    assert set(read) == {"data", "left", "right"}


def chain_of(length: int) -> Lineage:
    chain = Lineage(f"m:v{length}")
    for number in range(length, 0, -1):
        chain.add(Node(f"m:v{number}", "k", "sha256:" + "0" * 64, None))
        chain.link(Link("model", f"m:v{number - 1}", f"m:v{number}"))
    chain.add(Node("m:v0", "k", "sha256:" + "0" * 64, None))
    return chain


def test_a_long_chain_is_told_without_recursion_and_no_wider_than_deep() -> None:
    lines = render(chain_of(1500), "tree").splitlines()
    turns = [at for at, line in enumerate(lines) if line.endswith("(continued below)")]
    assert len(lines) == 2 * 1501 + len(turns)
    assert lines[turns[0]].strip().startswith("└── model: m:v1476  k")
    assert lines[turns[0] + 1].startswith("m:v1476  k")
    assert lines[-2].strip().startswith("└── model: m:v0  k")
    assert max(map(len, lines)) < 160


def test_the_text_of_a_chain_grows_with_its_length_alone() -> None:
    sizes = [len(render(chain_of(length), "tree")) for length in (500, 1000, 2000)]
    assert sizes[2] - sizes[1] < 2.2 * (sizes[1] - sizes[0])


def test_a_chain_that_just_fits_is_not_continued_below() -> None:
    assert "below" not in render(chain_of(24), "tree")
    assert "below" in render(chain_of(25), "tree")


def test_what_two_deep_branches_share_is_told_once_in_full() -> None:
    deep = chain_of(40)
    deep.add(Node("side:v1", "k", "sha256:" + "0" * 64, None))
    deep.link(Link("extra", "side:v1", "m:v40"))
    deep.link(Link("model", "m:v10", "side:v1"))
    lines = render(deep, "tree").splitlines()
    for number in range(41):
        full = [line for line in lines if re.search(rf"\bm:v{number}  k  0+$", line)]
        assert len(full) == 1, number


def test_graphs_for_other_tools(store: Store, diamond: Artifact) -> None:
    lineage = walk(store, diamond)
    mermaid = render(lineage, "mermaid").splitlines()
    assert mermaid[0] == "flowchart LR"
    assert mermaid[1].startswith('    n0["top:v1<br/>checkpoint_hf<br/>')
    assert '    n1 -->|"policy"| n0' in mermaid
    dot = render(lineage, "dot")
    assert dot.startswith("digraph lineage {")
    assert dot.endswith("}")
    assert '    n2 -> n0 [label="reference"];' in dot
    assert len(re.findall(r"->", dot)) == 4


def test_hostile_text_is_quoted(store: Store, tmp_path: Path) -> None:
    source = tmp_path / 'a"<b>\\.jsonl'
    source.write_text("x")
    lineage = walk(store, store.adopt(source, kind="k", name="data"))
    assert "a&quot;&lt;b&gt;" in render(lineage, "mermaid")
    assert 'a\\"<b>' in render(lineage, "dot")


def chain_in(store: Store, length: int) -> list[Artifact]:
    artifacts = [adopt(store, "m0")]
    for number in range(1, length):
        artifacts.append(make(store, f"m{number}", model=artifacts[-1]))
    return artifacts


def test_a_depth_says_how_far_the_graph_is_followed_and_where_there_is_more(store: Store) -> None:
    chain = chain_in(store, 6)
    near = walk(store, chain[3], depth=2)
    assert list(near.nodes) == ["m3:v1", "m2:v1", "m1:v1"]
    assert [(link.source, link.target) for link in near.links] == [
        ("m2:v1", "m3:v1"),
        ("m1:v1", "m2:v1"),
    ]
    assert near.cut == {"m1:v1"}
    assert walk(store, chain[3], depth=3).cut == set(), "it ends there"
    down = walk(store, chain[3], down=True, depth=1)
    assert (list(down.nodes), down.cut) == (["m3:v1", "m4:v1"], {"m4:v1"})
    alone = walk(store, chain[3], depth=0)
    assert (list(alone.nodes), alone.links, alone.cut) == (["m3:v1"], [], {"m3:v1"})


def test_edges_between_the_last_nodes_that_are_reached_are_told(store: Store) -> None:
    data = adopt(store, "data")
    left = make(store, "left", data=data)
    top = make(store, "top", policy=left, data=data)
    near = walk(store, top, depth=1)
    assert Link("data", "data:v1", "left:v1") in near.links
    assert near.cut == set()


def test_around_is_both_ways_in_one_graph(store: Store) -> None:
    chain = chain_in(store, 7)
    side = make(store, "side", model=chain[3], data=chain[1])
    both = around(store, chain[3])
    assert {*both.nodes} == {"m1:v1", "m2:v1", "m3:v1", "m4:v1", "m5:v1", side.ref}
    assert Link("data", "m1:v1", "side:v1") in both.links
    assert len(both.links) == 6
    assert both.cut == {"m1:v1", "m5:v1"}
    assert to_dict(both)["direction"] == "both"


def test_of_a_wide_fan_the_first_are_told_and_how_many_there_are_more() -> None:
    fan = Lineage("data:v1", "down")
    for ref in ("data:v1", *(f"eval:v{number}" for number in range(1, 16))):
        fan.add(Node(ref, "k", "sha256:" + "0" * 64, None))
        if ref != fan.root:
            fan.link(Link("data", fan.root, ref))
    fan.cut = {"eval:v1"}
    lines = render(fan, "tree").splitlines()
    told = [line.split()[2] for line in lines if "data: eval" in line]
    assert told == [f"eval:v{number}" for number in range(1, 11)]
    assert lines[-1] == "└── + 5 more"
    assert [line for line in lines if line.endswith("  (more beyond this depth)")] == lines[2:3]
    assert len(json.loads(render(fan, "json"))["nodes"]) == 16


def test_what_was_made_is_told_by_slot_and_name_the_first_version_first(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [("model", "sft:v10"), ("model", "sft:v2"), ("data", "z:v1"), ("model", "no ref")]
    monkeypatch.setattr(graph, "read_edges", lambda *_: iter(keys))
    asked: list[str] = []
    monkeypatch.setattr(store, "find", asked.append)
    walk(store, adopt(store, "data"), down=True)
    assert asked == ["z:v1", "no ref", "sft:v2", "sft:v10"]
