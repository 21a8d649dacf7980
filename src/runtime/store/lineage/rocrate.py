"""An artifact and its lineage as RO-Crate metadata (researchobject.org, version 1.1).

The crate is the artifact: beside its files, the text is called ``ro-crate-metadata.json``. How it
came to be is told in the words of the profile Process Run Crate: a run is a CreateAction with the
step as its ``instrument``, inputs and config as its ``object`` and artifacts as its ``result``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

from nemotron_style.runtime.store.lineage.graph import Lineage, Node
from nemotron_style.runtime.store.lineage.text import describe, describe_maker
from nemotron_style.runtime.store.record import Producer, Record
from nemotron_style.runtime.validation import flatten

_CRATE = "https://w3id.org/ro/crate/1.1"
_PROFILE = "https://w3id.org/ro/wfrun/process/0.5"
_TERMS = "https://w3id.org/ro/terms/workflow-run/context"  # has the word sha256

Entity = dict[str, Any]


def to_crate(lineage: Lineage) -> Entity:
    """The JSON-LD document; every entity once, in the order of the graph."""
    names = {ref: _identify(node) for ref, node in lineage.nodes.items()} | {lineage.root: "./"}
    runs = _group_by_run(lineage)
    descriptor = {
        "@id": "ro-crate-metadata.json",
        "@type": "CreativeWork",
        "conformsTo": {"@id": _CRATE},
        "about": {"@id": "./"},
    }
    entities: list[Entity] = [descriptor, _profile()]
    for ref, node in lineage.nodes.items():
        entities += _tell_artifact(node, names[ref], is_root=ref == lineage.root)
    for run_id, records in runs.items():
        entities += _tell_run(run_id, records, names)
    by_id = {entity["@id"]: entity for entity in reversed(entities)}  # the first of each
    by_id["./"]["mentions"] = _refer(f"#run/{run_id}" for run_id in runs)
    return {
        "@context": [f"{_CRATE}/context", _TERMS],
        "@graph": list(reversed(by_id.values())),
    }


def _group_by_run(lineage: Lineage) -> dict[str, list[Record]]:
    runs: dict[str, list[Record]] = {}
    for node in lineage.nodes.values():
        if node.record and node.record.producer:
            runs.setdefault(node.record.producer.run_id, []).append(node.record)
    return runs


def _profile() -> Entity:
    return {
        "@id": _PROFILE,
        "@type": "CreativeWork",
        "name": "Process Run Crate",
        "version": "0.5",
    }


def _identify(node: Node) -> str:
    return f"#artifact/{node.ref}/{node.digest}"  # it is no part of the crate


def _tell_artifact(node: Node, name: str, *, is_root: bool) -> Iterator[Entity]:
    record = node.record
    told: Entity = {
        "@id": name,
        "@type": "Dataset",
        "name": node.ref,
        "description": describe(node),
        "identifier": node.digest,
        "additionalType": node.kind,
        "version": node.ref.partition(":")[2],
    }
    figures: list[Entity] = []
    if record:
        figures = list(_tell_values(f"#metric/{node.ref}", record.metrics))
        told["description"] = f"{node.kind}, {describe_maker(record)}"
        told["dateCreated"] = record.created
        told["contentSize"] = str(record.size)
        told |= {"isBasedOn": record.origin.source} if record.origin else {}
    if figures:
        told["additionalProperty"] = _refer(each["@id"] for each in figures)
    if is_root:
        files = list(_tell_files(record)) if record else []
        told["conformsTo"] = {"@id": _PROFILE}
        told["datePublished"] = record.created if record else ""
        told["hasPart"] = _refer(each["@id"] for each in files)
        figures = files + figures
    yield from (told, *figures)


def _tell_files(record: Record) -> Iterator[Entity]:
    for file in record.files:
        size = {"contentSize": str(file.size), "sha256": file.sha256}
        yield {"@id": quote(file.path), "@type": "File", "name": file.path, **size}


def _tell_run(run_id: str, records: Iterable[Record], names: Mapping[str, str]) -> Iterator[Entity]:
    first, *_ = made = sorted(records, key=lambda record: record.created)
    producer = first.producer
    assert producer is not None
    read = {edge.ref: edge for record in made for edge in record.inputs}
    # What a graph that was cut, or followed downstream, does not hold is told by its consumer.
    beyond = [Node(r, edge.kind, edge.digest, None) for r, edge in read.items() if r not in names]
    for node in beyond:
        yield {"@id": _identify(node), "@type": "Dataset", "name": node.ref} | {
            "identifier": node.digest,
            "additionalType": node.kind,
        }
    sources = [names[ref] for ref in read if ref in names] + [_identify(each) for each in beyond]
    config = list(_tell_values(f"#config/{run_id}", first.config))
    step = _tell_step(producer, first)
    yield {
        "@id": f"#run/{run_id}",
        "@type": "CreateAction",
        "name": f"{producer.step} with the config {producer.config_name}",
        "identifier": run_id,
        "instrument": {"@id": step["@id"]},
        "object": _refer([*sources, *(each["@id"] for each in config)]),
        "result": _refer(names[record.ref] for record in made),
        "endTime": made[-1].created,
        "actionStatus": {"@id": "http://schema.org/CompletedActionStatus"},
    }
    yield step
    yield from config


def _tell_step(producer: Producer, record: Record) -> Entity:
    code = record.code
    software = [f"{name} {version}" for name, version in record.environment.items()]
    commit = {"identifier": f"git commit {code['commit']}"} if code.get("commit") else {}
    return {
        "@id": f"#step/{quote(producer.step)}/{quote(str(code.get('digest', '')))}",
        "@type": "SoftwareApplication",
        "name": producer.step,
        "softwareVersion": str(code.get("version", "unknown")),
        "softwareRequirements": software,
        **commit,
    }


def _tell_values(prefix: str, values: Mapping[str, Any]) -> Iterator[Entity]:
    for key, value in flatten(values).items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        yield {"@id": f"{prefix}/{quote(key)}", "@type": "PropertyValue", "name": key} | {
            "value": text
        }


def _refer(names: Iterable[str]) -> list[dict[str, str]]:
    return [{"@id": name} for name in names]
