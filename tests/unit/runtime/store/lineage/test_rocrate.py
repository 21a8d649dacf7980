"""RO-Crate metadata: read back by the library for crates, and closed in itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from nemotron_style.runtime.store.lineage.formats import render
from nemotron_style.runtime.store.lineage.graph import Node, walk
from nemotron_style.runtime.store.lineage.rocrate import to_crate
from nemotron_style.runtime.store.record import Artifact, Producer
from nemotron_style.runtime.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def model(store: Store) -> Artifact:
    source = store.root.parent / "rows.jsonl"
    source.write_text("{}\n")
    data = store.adopt(source, kind="raw_jsonl", name="data")
    staged = store.stage("test")
    (staged / "weights").mkdir()
    (staged / "weights" / "part 1#ü.bin").write_text("w")
    return store.commit(
        staged,
        name="sft",
        kind="checkpoint_hf",
        producer=Producer(run_id="run-1", step="sft/chat", slot="model"),
        inputs=[data.edge("data"), data.edge("more")],
        config={"optim": {"lr": 1e-3}, "a b#": 'x"'},
        code={"version": "0.1.0", "commit": "c0ffee", "digest": "d1"},
        environment={"python": "3.11"},
        metrics={"loss": 0.5},
    )


def test_the_library_for_crates_reads_it(store: Store, model: Artifact, tmp_path: Path) -> None:
    rocrate = pytest.importorskip("rocrate.rocrate", reason="rocrate is not installed")
    folder = tmp_path / "crate"
    shutil.copytree(model.path, folder)
    text = render(walk(store, model), "ro-crate")
    (folder / "ro-crate-metadata.json").write_text(text)
    crate = rocrate.ROCrate(folder)
    assert crate.root_dataset["name"] == "sft:v1"
    [file] = crate.root_dataset["hasPart"]
    assert (file["name"], file["contentSize"]) == ("weights/part 1#ü.bin", "1")
    [action] = crate.root_dataset["mentions"]
    assert action.type == "CreateAction"
    assert action["result"] == [crate.root_dataset]
    assert (action["instrument"].type, action["instrument"]["name"]) == (
        "SoftwareApplication",
        "sft/chat",
    )
    data, *config = action["object"]
    assert (data["name"], data["isBasedOn"]) == ("data:v1", str(tmp_path / "rows.jsonl"))
    assert {each["name"]: each["value"] for each in config} == {
        "optim.lr": "0.001",
        "a b#": 'x"',
    }
    [metric] = crate.root_dataset["additionalProperty"]
    assert (metric["name"], metric["value"]) == ("loss", "0.5")
    crate.write(tmp_path / "again")
    assert (tmp_path / "again" / "weights" / "part 1#ü.bin").read_text() == "w"


def find_references(value: Any) -> set[str]:
    if isinstance(value, list):
        return set().union(*map(find_references, value))
    if not isinstance(value, dict):
        return set()
    own = {value["@id"]} if value.keys() == {"@id"} else set()
    return own.union(*map(find_references, value.values()))


@pytest.mark.parametrize("way", [{}, {"depth": 0}, {"down": True}])
def test_every_entity_that_is_named_is_described_once(
    store: Store, model: Artifact, way: dict[str, Any]
) -> None:
    start = store.resolve("data") if way.get("down") else model
    graph = to_crate(walk(store, start, **way))["@graph"]
    names = [entity["@id"] for entity in graph]
    assert len(names) == len(set(names))
    elsewhere = {
        "https://w3id.org/ro/crate/1.1",
        "http://schema.org/CompletedActionStatus",
    }
    assert find_references(graph) - set(names) == elsewhere
    assert names[0] == "ro-crate-metadata.json"


def test_what_is_no_longer_in_the_store_is_named(store: Store, model: Artifact) -> None:
    lineage = walk(store, model)
    gone = lineage.nodes["data:v1"]
    lineage.nodes["data:v1"] = Node(gone.ref, gone.kind, gone.digest, None)
    told = json.dumps(to_crate(lineage))
    assert "no longer in the store" in told
    assert gone.digest in told
