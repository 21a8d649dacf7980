"""A lineage as events of the OpenLineage specification (openlineage.io, spec 2-0-2).

Each run becomes a START and a COMPLETE event of a job named after its step; an adopted artifact
that no run in the lineage reads becomes an event of its own dataset.
"""

from __future__ import annotations

import re
import uuid
from typing import Any

from nemotron_style.runtime.store.lineage.graph import Lineage, Node
from nemotron_style.runtime.store.record import Record

_SPEC = "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/"
_FACETS = "https://openlineage.io/spec/facets/"
_PRODUCER = "urn:nemotron-style"
_NAMESPACE = "nemotron-style"
# Run ids of the specification are UUIDs: ours, hashed under this name, always give the same one.
_RUNS = uuid.uuid5(uuid.NAMESPACE_URL, "urn:nemotron-style:runs")

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d")

Event = dict[str, Any]


def to_events(lineage: Lineage) -> list[Event]:
    """Two RunEvents for every run in the lineage and DatasetEvents for the rest, oldest first."""
    runs: dict[str, list[Record]] = {}
    alone = lineage.nodes.keys() - {link.source for link in lineage.links}
    events: list[Event] = []
    for node in lineage.nodes.values():
        record = node.record
        if record and record.producer:
            runs.setdefault(record.producer.run_id, []).append(record)
        elif record and node.ref in alone:
            events.append(_event("DatasetEvent", record.created) | {"dataset": _dataset(node)})
    for run_id, records in runs.items():
        made = sorted(records, key=lambda record: record.created)
        complete = _complete_event(lineage, run_id, made)
        events += [_start_event(complete, made[0]), complete]
    return sorted(events, key=lambda event: str(event["eventTime"]))


def _start_event(complete: Event, record: Record) -> Event:
    assert record.producer is not None
    attempts = record.producer.attempts
    started = str(attempts[0].get("started", "")) if attempts else ""
    # An attempt may lack its start, and the specification wants a time in every event.
    time = started if _TIME.match(started) else complete["eventTime"]
    return complete | {"eventType": "START", "eventTime": time, "outputs": []}


def _complete_event(lineage: Lineage, run_id: str, made: list[Record]) -> Event:
    record = made[0]
    assert record.producer is not None
    read = {edge.ref: edge for each in made for edge in each.inputs}
    inputs = [
        lineage.nodes.get(ref) or Node(ref, edge.kind, edge.digest, None)
        for ref, edge in read.items()
    ]
    facet = record.model_dump(mode="json", include={"config", "environment", "hardware", "seeds"})
    facet |= {"runId": run_id, "attempts": list(record.producer.attempts)}
    facet |= {"configName": record.producer.config_name, "metrics": record.metrics}
    return _event("RunEvent", made[-1].created) | {
        "eventType": "COMPLETE",
        "run": {
            "runId": str(uuid.uuid5(_RUNS, run_id)),
            "facets": {"nemotronStyle_run": _own_facet("RunFacet", facet)},
        },
        "job": _job(record),
        "inputs": [_dataset(node) for node in inputs],
        "outputs": [_output(lineage.nodes[each.ref], each) for each in made],
    }


def _job(record: Record) -> dict[str, Any]:
    assert record.producer is not None
    kind = {"processingType": "BATCH", "integration": "NEMOTRON_STYLE", "jobType": "STEP"}
    return {
        "namespace": _NAMESPACE,
        "name": record.producer.step,
        "facets": {
            "jobType": _facet("2-0-3", "JobTypeJobFacet", kind),
            "nemotronStyle_code": _own_facet("JobFacet", dict(record.code)),
        },
    }


def _dataset(node: Node) -> dict[str, Any]:
    name, _, version = node.ref.partition(":")
    known = {"ref": node.ref, "kind": node.kind, "digest": node.digest}
    return {
        "namespace": _NAMESPACE,
        "name": name,
        "facets": {
            "version": _facet("1-0-1", "DatasetVersionDatasetFacet", {"datasetVersion": version}),
            "nemotronStyle_artifact": _own_facet("DatasetFacet", known),
        },
    }


def _output(node: Node, record: Record) -> dict[str, Any]:
    size = {"size": record.size, "fileCount": len(record.files)}
    facet = _facet("1-0-2", "OutputStatisticsOutputDatasetFacet", size)
    return _dataset(node) | {"outputFacets": {"outputStatistics": facet}}


def _event(kind: str, time: str) -> Event:
    return {"eventTime": time, "producer": _PRODUCER, "schemaURL": _SPEC + kind}


def _facet(version: str, name: str, values: dict[str, Any]) -> dict[str, Any]:
    schema = f"{_FACETS}{version}/{name}.json#/$defs/{name}"
    return {"_producer": _PRODUCER, "_schemaURL": schema} | values


def _own_facet(base: str, values: dict[str, Any]) -> dict[str, Any]:
    return {"_producer": _PRODUCER, "_schemaURL": _SPEC + base} | values
