"""Events of OpenLineage: valid by the schemas of the specification, facets included."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nemotron_style.runtime.store.lineage.formats import render
from nemotron_style.runtime.store.lineage.graph import walk
from nemotron_style.runtime.store.lineage.openlineage import (
    FAIL,
    RunFacts,
    end_event,
    identify_run,
    start_event,
    to_events,
)
from nemotron_style.runtime.store.record import Artifact, Producer
from nemotron_style.runtime.store.store import Store

pytest.importorskip("jsonschema", reason="jsonschema is not installed")
from openlineage_schema import check_event

COMMIT = "c0ffee" * 6 + "c0de"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def data(store: Store) -> Artifact:
    source = store.root.parent / "my rows.jsonl"
    source.write_text("{}\n")
    return store.adopt(source, kind="raw_jsonl", name="data")


def make(store: Store, name: str, *, slot: str = "model", **inputs: Artifact) -> Artifact:
    staged = store.stage("test")
    (staged / "a").write_text(name)
    attempts = ({"number": 1, "state": "FAILED"}, {"number": 2, "state": "COMPLETED"})
    run_id = f"run-{name.split('.')[0]}"
    return store.commit(
        staged,
        name=name,
        kind="checkpoint_hf",
        producer=Producer(run_id=run_id, step="sft/chat", slot=slot, attempts=attempts),
        inputs=[artifact.edge(slot) for slot, artifact in inputs.items()],
        config={"optim": {"lr": 1e-3, "betas": [0.9, 0.98]}, "name": "ü\n\x1b\"'"},
        code={"version": "0.1.0", "commit": COMMIT, "digest": "d1"},
        environment={"python": "3.11"},
        metrics={"loss": 0.5, "bad": "nan"},
    )


def test_every_event_and_facet_is_valid(store: Store, data: Artifact) -> None:
    left = make(store, "left", data=data)
    make(store, "top", policy=left, reference=left)
    make(store, "top.log", slot="log", policy=left)
    lineage = walk(store, data, down=True)
    events = json.loads(render(lineage, "openlineage"))
    assert events == to_events(lineage)
    for event in events:
        check_event(event)
    assert [event["eventType"] for event in events] == ["START", "COMPLETE"] * 2
    assert [event["eventTime"] for event in events] == sorted(e["eventTime"] for e in events)
    made, last = events[1], events[3]
    assert made["job"]["namespace"] == "nemotron-style"
    assert made["job"]["name"] == "sft/chat"
    assert made["job"]["facets"]["sourceCodeLocation"]["url"] == f"swh:1:rev:{COMMIT}"
    assert made["run"]["runId"] == identify_run("run-left", 2) != identify_run("run-left", 1)
    parameters = made["run"]["facets"]["executionParameters"]["parameters"]
    assert {"key": "optim.lr", "value": "0.001"} in parameters
    [dataset] = made["inputs"]
    assert dataset["name"] == "data"
    assert dataset["facets"]["version"]["datasetVersion"] == "v1"
    assert dataset["facets"]["dataSource"]["uri"].endswith("/my%20rows.jsonl")
    assert dataset["inputFacets"]["inputStatistics"]["size"] == 3
    assert [each["name"] for each in last["outputs"]] == ["top", "top.log"]
    assert [each["name"] for each in last["inputs"]] == ["left"], "once, though in two slots"
    own = last["run"]["facets"]["nemotronStyle_run"]
    assert own["inputs"] == {"policy": "left:v1", "reference": "left:v1"}
    upstream = last["run"]["facets"]["jobDependencies"]["upstream"]
    assert [each["run"]["runId"] for each in upstream] == [made["run"]["runId"]]


def test_an_adopted_artifact_alone_is_a_dataset_event(store: Store, data: Artifact) -> None:
    (event,) = to_events(walk(store, data))
    check_event(event)
    assert event["schemaURL"].endswith("#/$defs/DatasetEvent")
    assert event["dataset"]["name"] == "data"


def test_an_attempt_that_failed_says_why_and_who_started_it() -> None:
    parent = ("airflow", "dag/task", "3f5e83fa-3480-44ff-99c5-ff943904e5e8")
    now = "2026-01-02T03:04:05+00:00"
    facts = RunFacts("run-1", "sft/chat", "tiny", 3, now, now, FAIL, "no memory", parent=parent)
    start, end = start_event(facts), end_event(facts)
    for event in (start, end):
        check_event(event)
        assert event["run"]["facets"]["parent"]["job"] == {
            "namespace": "airflow",
            "name": "dag/task",
        }
    assert (start["eventType"], end["eventType"]) == ("START", "FAIL")
    assert end["run"]["facets"]["errorMessage"]["message"] == "no memory"
    assert "errorMessage" not in start["run"]["facets"]


def test_the_namespace_is_that_of_other_producers(
    store: Store, data: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = identify_run("run-1", 1)
    monkeypatch.setenv("OPENLINEAGE_NAMESPACE", "lab")
    (event,) = to_events(walk(store, data))
    assert event["dataset"]["namespace"] == "lab"
    assert identify_run("run-1", 1) != ours
