"""Events of OpenLineage, checked against the specification's own schemas and those of ours."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jsonschema import Draft202012Validator, FormatChecker
from referencing import Registry, Resource

from nemotron_style.runtime.store.lineage import openlineage

SPEC = Path(__file__).parents[1] / "golden" / "openlineage"
OWN = Path(openlineage.__file__).with_suffix(".json")
SCHEMAS = [json.loads(path.read_text()) for path in [*sorted(SPEC.glob("*.json")), OWN]]
EVENT = "https://openlineage.io/spec/2-0-2/OpenLineage.json"
registry = Registry().with_resources(
    (each["$id"], Resource.from_contents(each)) for each in SCHEMAS
)
formats = FormatChecker(())


@formats.checks("date-time", raises=ValueError)
def _is_time(text: object) -> bool:
    return datetime.fromisoformat(str(text)).tzinfo is not None


@formats.checks("uuid", raises=ValueError)
def _is_uuid(text: object) -> bool:
    return str(uuid.UUID(str(text))) == text


@formats.checks("uri", raises=ValueError)
def _is_uri(text: object) -> bool:
    return bool(urlsplit(str(text)).scheme) and " " not in str(text)


def check_event(event: dict[str, Any]) -> None:
    """Raise ``ValidationError`` for what the specification does not allow, facets included."""
    _validate(event, EVENT)
    assert event["schemaURL"].startswith(EVENT)
    _validate(event, event["schemaURL"])
    for facet in find_facets(event):
        _validate(facet, facet["_schemaURL"])  # which raises for a schema that is not known


def find_facets(value: Any) -> Iterator[dict[str, Any]]:
    """Every facet of an event, wherever it stands."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        if str(key).lower().endswith("facets"):
            yield from item.values()
        if isinstance(item, dict | list):
            yield from find_facets(item)


def _validate(value: Any, schema: str) -> None:
    Draft202012Validator({"$ref": schema}, registry=registry, format_checker=formats).validate(
        value
    )
