"""The records of a ``.wandb`` file: a log of blocks as LevelDB has it, with W&B's own messages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEADER, HEAD_OF_FILE = 32768, 7, 7
FULL, FIRST, LAST = 1, 2, 4


def read_records(path: Path) -> Iterator[Any]:
    """Each record that wandb wrote, parsed by its own classes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, whole = path.read_bytes(), HEAD_OF_FILE, b""
    while at + HEADER <= len(content):
        left = BLOCK - at % BLOCK
        if left < HEADER:  # the rest of a block that no header fits into
            at += left
            continue
        size, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        part = content[at + HEADER : at + HEADER + size]
        whole = part if kind in (FULL, FIRST) else whole + part
        at += HEADER + size
        if kind in (FULL, LAST):
            record = Record()
            record.ParseFromString(whole)
            yield record


def read_run(path: Path) -> dict[str, Any]:
    """What a ``.wandb`` file holds of a run: its id, config, rows, artifacts and exit code."""
    run: dict[str, Any] = {"config": {}, "rows": [], "code": None, "used": [], "logged": []}
    for record in read_records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run["id"], run["project"] = record.run.run_id, record.run.project
        update = {"run": record.run.config, "config": record.config}.get(kind)
        for item in update.update if update else ():
            key = item.key or "/".join(item.nested_key)
            run["config"][key] = json.loads(item.value_json)
        if kind == "history":
            items = record.history.item
            row = {item.key or "/".join(item.nested_key): item.value_json for item in items}
            row = {key: json.loads(text) for key, text in row.items()}
            run["rows"].append({key: one for key, one in row.items() if key[0] != "_"})
        if kind == "artifact":
            entry = record.artifact
            facts = json.loads(entry.metadata) | {"url": entry.manifest.contents[0].ref}
            run["used" if entry.use_after_commit else "logged"].append(facts)
        if kind == "exit":
            run["code"] = record.exit.exit_code
    return run
