"""Runs and artifacts as events of the OpenLineage specification (openlineage.io, spec 2-0-2).

An attempt at a run is a run of OpenLineage: its job is named after the step, and it has a START
event and one of COMPLETE, FAIL and ABORT. Artifacts are datasets, and their versions are versions.
Facets that the specification does not have are described by ``openlineage.json`` beside this file.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemotron_style.runtime.store.lineage.graph import Lineage, Node
from nemotron_style.runtime.store.record import Record
from nemotron_style.runtime.validation import flatten

COMPLETE, FAIL, ABORT = "COMPLETE", "FAIL", "ABORT"
_SPEC = "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/"
_FACETS = "https://openlineage.io/spec/facets/"
_OWN = "urn:nemotron-style:openlineage:1-0-0#/$defs/"
_PRODUCER = "urn:nemotron-style"
_STANDARD = {
    "version": "1-0-1/DatasetVersionDatasetFacet",
    "datasetType": "1-0-1/DatasetTypeDatasetFacet",
    "dataSource": "1-0-1/DatasourceDatasetFacet",
    "lifecycleStateChange": "1-0-1/LifecycleStateChangeDatasetFacet",
    "schema": "1-2-0/SchemaDatasetFacet",
    "inputStatistics": "1-0-0/InputStatisticsInputDatasetFacet",
    "outputStatistics": "1-0-2/OutputStatisticsOutputDatasetFacet",
    "jobType": "2-0-3/JobTypeJobFacet",
    "sourceCodeLocation": "1-1-0/SourceCodeLocationJobFacet",
    "errorMessage": "1-0-1/ErrorMessageRunFacet",
    "executionParameters": "1-0-0/ExecutionParametersRunFacet",
    "jobDependencies": "1-0-1/JobDependenciesRunFacet",
    "parent": "1-2-0/ParentRunFacet",
    "processing_engine": "1-1-1/ProcessingEngineRunFacet",
}
_COMMIT = re.compile(r"[0-9a-f]{40}")

Event = dict[str, Any]
Facets = dict[str, Any]


@dataclass(frozen=True)
class RunFacts:
    """An attempt at a run; times are ISO 8601, and ``ended`` is "" while it goes on.

    ``parent`` is (namespace, name, run id) of the job of another system that started it.
    """

    run_id: str
    step: str
    config_name: str
    attempt: int
    started: str
    ended: str = ""
    outcome: str = COMPLETE
    error: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    code: Mapping[str, Any] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)
    inputs: Sequence[tuple[str, Node]] = ()
    outputs: Sequence[Node] = ()
    parent: tuple[str, str, str] | None = None


def to_events(lineage: Lineage) -> list[Event]:
    """Two events for every run in the lineage, and one for each other dataset, oldest first."""
    runs: dict[str, list[Record]] = {}
    alone = lineage.nodes.keys() - {link.source for link in lineage.links}
    events: list[Event] = []
    for node in lineage.nodes.values():
        record = node.record
        if record and record.producer:
            runs.setdefault(record.producer.run_id, []).append(record)
        elif record and node.ref in alone:
            dataset = _dataset(node, {})
            events.append(_event("DatasetEvent", record.created) | {"dataset": dataset})
    for records in runs.values():
        facts = _read_records(lineage, records)
        events += [start_event(facts), end_event(facts)]
    return sorted(events, key=lambda event: str(event["eventTime"]))


def _read_records(lineage: Lineage, records: Iterable[Record]) -> RunFacts:
    """The run that made some artifacts, by their records; they do not say when it began."""
    first, *_ = made = sorted(records, key=lambda record: record.created)
    producer = first.producer
    assert producer is not None
    number = producer.attempts[-1].get("number") if producer.attempts else None
    read = {(edge.slot, edge.ref): edge for each in made for edge in each.inputs}
    return RunFacts(
        producer.run_id,
        producer.step,
        producer.config_name,
        attempt=number if isinstance(number, int) else 1,
        started=first.created,
        ended=made[-1].created,
        config=first.config,
        code=first.code,
        more=describe_making(first),
        inputs=[
            (slot, lineage.nodes.get(ref) or Node(ref, edge.kind, edge.digest, None))
            for (slot, ref), edge in read.items()
        ],
        outputs=[lineage.nodes[each.ref] for each in made],
    )


def describe_making(record: Record) -> dict[str, Any]:
    """What a record says of the run beside config and code."""
    facts = record.model_dump(mode="json", include={"environment", "hardware", "seeds", "metrics"})
    producer = record.producer
    assert producer is not None
    return facts | {"attempts": list(producer.attempts), "fingerprint": producer.fingerprint}


def start_event(facts: RunFacts) -> Event:
    """That an attempt has begun; what it reads, nothing of what it will make."""
    return _run_event(facts, "START", facts.started, outputs=())


def end_event(facts: RunFacts) -> Event:
    """How an attempt ended, and what it made."""
    event = _run_event(facts, facts.outcome, facts.ended, outputs=facts.outputs)
    if facts.error:
        told = {"message": facts.error, "programmingLanguage": "PYTHON"}
        event["run"]["facets"] |= _standard("errorMessage", **told)
    return event


def _run_event(facts: RunFacts, kind: str, time: str, *, outputs: Sequence[Node]) -> Event:
    inputs = {node.ref: node for _, node in facts.inputs}  # one artifact may fill two slots
    own = {"runId": facts.run_id, "attempt": facts.attempt, "configName": facts.config_name}
    own |= {"config": dict(facts.config), "inputs": {s: node.ref for s, node in facts.inputs}}
    run = _facet(_OWN + "NemotronStyleRunFacet", **own, **facts.more)
    facets: Facets = {"nemotronStyle_run": run, **_standard_run_facets(facts)}
    return _event("RunEvent", time) | {
        "eventType": kind,
        "run": {"runId": identify_run(facts.run_id, facts.attempt), "facets": facets},
        "job": {
            "namespace": find_namespace(),
            "name": facts.step,
            "facets": _job_facets(facts.code),
        },
        "inputs": [_input(node) for node in inputs.values()],
        "outputs": [_output(node) for node in outputs],
    }


def _standard_run_facets(facts: RunFacts) -> Facets:
    version = str(facts.code.get("version", "unknown"))
    engine = {"name": "nemotron-style", "openlineageAdapterVersion": version}
    parameters = [
        {"key": key, "value": value if isinstance(value, str) else json.dumps(value)}
        for key, value in flatten(facts.config).items()
    ]
    facets = _standard("processing_engine", version=version, **engine)
    facets |= _standard("executionParameters", parameters=parameters)
    made = [node.record.producer for _, node in facts.inputs if node.record]
    upstream = {producer.run_id: _dependency(producer) for producer in made if producer}
    if upstream:
        facets |= _standard("jobDependencies", upstream=list(upstream.values()))
    if facts.parent:
        namespace, name, run_id = facts.parent
        job = {"namespace": namespace, "name": name}
        facets |= _standard("parent", run={"runId": run_id}, job=job)
    return facets


def _dependency(producer: Any) -> dict[str, Any]:
    attempts = [each["number"] for each in producer.attempts if isinstance(each.get("number"), int)]
    run_id = identify_run(producer.run_id, max(attempts, default=1))
    return {
        "job": {"namespace": find_namespace(), "name": producer.step},
        "run": {"runId": run_id},
        "dependency_type": "IMPLICIT_DEPENDENCY",
    }


def _job_facets(code: Mapping[str, Any]) -> Facets:
    kind = {"processingType": "BATCH", "integration": "NEMOTRON_STYLE", "jobType": "STEP"}
    facets = _standard("jobType", **kind)
    facets["nemotronStyle_code"] = _facet(_OWN + "NemotronStyleCodeJobFacet", **code)
    commit = str(code.get("commit", ""))
    if _COMMIT.fullmatch(commit):
        # Where its repository is kept nobody knows here; this identifier is the same everywhere.
        place = {"type": "git", "url": f"swh:1:rev:{commit}", "version": commit}
        facets |= _standard("sourceCodeLocation", **place)
    return facets


def _input(node: Node) -> dict[str, Any]:
    facets = _statistics("inputStatistics", node.record)
    return _dataset(node, {}) | ({"inputFacets": facets} if facets else {})


def _output(node: Node) -> dict[str, Any]:
    change = "CREATE" if node.ref.endswith(":v1") else "OVERWRITE"  # the dataset is the name
    facets = _standard("lifecycleStateChange", lifecycleStateChange=change)
    statistics = _statistics("outputStatistics", node.record)
    return _dataset(node, facets) | ({"outputFacets": statistics} if statistics else {})


def _statistics(name: str, record: Record | None) -> Facets:
    return _standard(name, size=record.size, fileCount=len(record.files)) if record else {}


def _dataset(node: Node, facets: Facets) -> dict[str, Any]:
    name, _, version = node.ref.partition(":")
    known: dict[str, Any] = {"ref": node.ref, "kind": node.kind, "digest": node.digest}
    known |= {"removed": node.removed} if node.removed else {}
    known |= {"facts": node.record.facts} if node.record else {}
    facets |= _standard("version", datasetVersion=version)
    facets |= _standard("datasetType", datasetType="FILE", subType=node.kind)
    facets["nemotronStyle_artifact"] = _facet(_OWN + "NemotronStyleArtifactDatasetFacet", **known)
    origin = node.record.origin if node.record else None
    if origin:
        place = Path(origin.source)
        uri = place.as_uri() if place.is_absolute() else origin.source
        facets |= _standard("dataSource", name=origin.source, uri=uri)
    return {"namespace": find_namespace(), "name": name, "facets": facets}


def identify_run(run_id: str, attempt: int) -> str:
    """The UUID of an attempt, always the same within a namespace."""
    space = uuid.uuid5(uuid.NAMESPACE_URL, f"{_PRODUCER}:{find_namespace()}")
    return str(uuid.uuid5(space, f"{run_id}/{attempt}"))


def find_namespace() -> str:
    """Of all jobs and datasets: ``$OPENLINEAGE_NAMESPACE``, as other producers have it."""
    return os.environ.get("OPENLINEAGE_NAMESPACE") or "nemotron-style"


def _event(kind: str, time: str) -> Event:
    return {"eventTime": time, "producer": _PRODUCER, "schemaURL": _SPEC + kind}


def _standard(name: str, /, **values: Any) -> Facets:
    definition = _STANDARD[name].partition("/")[2]
    return {name: _facet(f"{_FACETS}{_STANDARD[name]}.json#/$defs/{definition}", **values)}


def _facet(schema: str, /, **values: Any) -> dict[str, Any]:
    return {"_producer": _PRODUCER, "_schemaURL": schema} | values
