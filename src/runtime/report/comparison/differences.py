"""The keys in which several artifacts or runs differ: config, inputs, code, result."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nemotron_style.runtime.report.subject import Subject
from nemotron_style.runtime.validation import flatten

MOST_TEXT = 160
"""Characters of a value in a table."""
DIGEST = re.compile(r"\b(sha256:)?[0-9a-f]{64}\b")
_UNCLEAR = re.compile(r'"([-+.\d].*|true|false|null|.*\\.*|)"$')
"""Texts that could be taken for something else without their quotes."""
TOLD_FACTS = ("weights_digest", "tokenizer_digest", "template_digest", "chat_format")


@dataclass(frozen=True)
class Difference:
    """A key whose values differ; None where a subject does not have it."""

    key: str
    values: tuple[str | None, ...]

    @property
    def is_shared(self) -> bool:
        """Whether all of them have it."""
        return None not in self.values


def find_differences(subjects: Sequence[Subject]) -> dict[str, list[Difference]]:
    """The keys in which they differ, by what they belong to."""
    flat = [_flatten(subject) for subject in subjects]
    groups: dict[str, list[Difference]] = {}
    for group in dict.fromkeys(group for each in flat for group in each):
        keys = dict.fromkeys(key for each in flat for key in each.get(group, {}))
        rows = []
        for key in keys:
            # As text: to Python 1, 1.0 and true are equal.
            values = [
                json.dumps(each[group][key], ensure_ascii=False, sort_keys=True)
                if key in each.get(group, {})
                else None
                for each in flat
            ]
            if len(set(values)) > 1:
                rows.append(Difference(key, tuple(map(_show, shorten_alike(values)))))
        groups[group] = rows
    return groups


def shorten_alike(values: Sequence[str | None]) -> list[str | None]:
    """Long values cut so that the place where they differ is left to be seen."""
    known = [value for value in values if value is not None]
    start = 0
    if any(len(value) > MOST_TEXT for value in known):
        first = known[0]
        same = (len(set(column)) == 1 for column in zip(*known, strict=False))
        equal = next((at for at, alike in enumerate(same) if not alike), len(first))
        start = max(0, equal - MOST_TEXT // 4)
    cut = [None if value is None else value[start : start + MOST_TEXT] for value in values]
    return [
        text
        if text is None or value is None
        else ("…" if start else "") + text + ("…" if start + MOST_TEXT < len(value) else "")
        for text, value in zip(cut, values, strict=True)
    ]


def _show(value: str | None) -> str | None:
    """A value as people read it: a word without its quotes, a digest by its beginning."""
    if value is None:
        return None
    value = DIGEST.sub(lambda found: f"{found[0][:-52]}…", value)
    if value[:1] == value[-1:] == '"' and not _UNCLEAR.match(value):
        return value[1:-1]
    return value


def _flatten(subject: Subject) -> dict[str, dict[str, Any]]:
    """What made a subject, by group and dotted key."""
    if record := subject.record:
        facts = {name: record.facts[name] for name in TOLD_FACTS if name in record.facts}
        producer = record.producer
        made = {"step": producer.step, "config_name": producer.config_name} if producer else {}
        made |= {"origin": record.origin.source} if record.origin else {}
        return {
            "Config": {**made, **flatten(record.config), **flatten(record.seeds, "seeds.")},
            "Inputs": {edge.slot: f"{edge.ref} {edge.digest[:19]}" for edge in record.inputs},
            "Code and environment": {
                **flatten(record.code, "code."),
                **flatten(record.environment, "environment."),
                **flatten(record.hardware, "hardware."),
            },
            "Result": {"kind": record.kind, "digest": record.digest, **facts},
        }
    if plan := subject.plan:
        inputs = {each.slot: each.source for each in plan.inputs}
        config = {"step": plan.step, "config_name": plan.config_name, **flatten(plan.config)}
        return {"Config": config, "Inputs": inputs}
    return {}
