"""Attack a store and count what it loses: ``make faults``, the figures of docs/reliability.md.

``python tests/faults/attacks.py [--small] [--folder FOLDER] [--json FILE] [PART ...]`` prints a
table; the exit code is 1 when a promise was broken. FOLDER is on the disk that is to be tried, say
a mount of NFS or Lustre (default: the temporary folder).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import disks
from killing import kill_at_random
from publishing import publish_at_once
from refusing import NUMBERS, fill_each, refuse_each
from removing import remove_each

BAD = ("lost", "duplicate", "backwards", "torn_reads", "torn", "stuck")
LISTS = ("errors", "unsound", "wrong")
BUCKET_ACT_S = 3.0  # a killed process lives at most so long: requests take longer than files
LARGE = {
    "processes": 64,
    "publishes": 200,
    "kills": 1000,
    "step": 1,
    "errors": 3,
    "graphs": 1000,
    "bucket_processes": 16,
    "bucket_publishes": 3,
    "bucket_kills": 16,
}
SMALL = {
    "processes": 8,
    "publishes": 4,
    "kills": 20,
    "step": 89,
    "errors": 1,
    "graphs": 15,
    "bucket_processes": 2,
    "bucket_publishes": 2,
    "bucket_kills": 2,
}
DISKS = {"local disk": nullcontext, "no hard links": disks.no_hard_links}
ONCE = ("fill", "remove", "bucket")  # not on every disk

Sizes = dict[str, int]


def publish(folder: Path, sizes: Sizes) -> dict[str, Any]:
    """Many processes publish under one name."""
    counts = {name: sizes[name] for name in ("processes", "publishes")}
    return publish_at_once(str(folder / "store"), write_rows(folder), **counts)


def kill(folder: Path, sizes: Sizes) -> dict[str, Any]:
    """Processes are killed at random moments."""
    return kill_at_random(str(folder / "store"), write_rows(folder), kills=sizes["kills"])


def refuse(folder: Path, sizes: Sizes) -> dict[str, Any]:
    """The disk refuses at every operation in turn."""
    return refuse_each(folder, step=sizes["step"], numbers=NUMBERS[: sizes["errors"]])


def fill(folder: Path, sizes: Sizes) -> dict[str, Any]:
    """A real small disk runs full at every page and every file in turn."""
    with disks.tmpfs(folder / "disk") as is_mounted:
        if not is_mounted:
            return {"skipped": "nothing can be mounted here"}
        return fill_each(folder, folder / "disk", step=sizes["step"])


def remove(folder: Path, sizes: Sizes) -> dict[str, Any]:
    """Artifacts of random families are removed."""
    return remove_each(folder, graphs=sizes["graphs"])


def bucket(folder: Path, sizes: Sizes) -> dict[str, Any]:
    """Publishing and killing, with a bucket behind a network that fails."""
    from bucket import BUCKET, faulty_bucket
    from s3_server import REASON

    if REASON:
        return {"skipped": REASON}
    rows, root = write_rows(folder), f"s3://{BUCKET}"
    counts = {name: sizes[f"bucket_{name}"] for name in ("processes", "publishes")}
    with faulty_bucket() as proxy, patch.dict(os.environ, {"XDG_CACHE_HOME": str(folder)}):
        published = publish_at_once(f"{root}/publish", rows, **counts)
        killed = kill_at_random(
            f"{root}/kill", rows, kills=sizes["bucket_kills"], longest_s=BUCKET_ACT_S
        )
        befallen = {name: count for name, count in sorted(proxy.befallen.items()) if count}
        requests = {"requests": proxy.requests, "befallen": befallen}
    lists = {name: [*published.get(name, ()), *killed.get(name, ())] for name in LISTS}
    seconds = published["seconds"] + killed["seconds"]
    bad = {name: published.get(name, 0) + killed.get(name, 0) for name in BAD}
    return {**published, **killed, **bad, **requests, **lists, "seconds": seconds}


PARTS: dict[str, Callable[[Path, Sizes], dict[str, Any]]] = {
    "publish": publish,
    "kill": kill,
    "refuse": refuse,
    "fill": fill,
    "remove": remove,
    "bucket": bucket,
}


def write_rows(folder: Path) -> Path:
    """A file to adopt."""
    rows = folder / "rows.jsonl"
    rows.write_text("{}\n")
    return rows


def attack(
    folder: Path, sizes: Sizes, parts: list[str]
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(part, disk, figures) of each attack, made in a folder of its own."""
    for part in parts:
        for disk, enter in DISKS.items():
            if part in ONCE and disk != "local disk":
                continue
            place = Path(tempfile.mkdtemp(prefix="faults-", dir=folder))
            try:
                with enter(), disks.no_waiting():
                    disk = "S3, over a bad line" if part == "bucket" else disk
                    yield part, disk, PARTS[part](place, sizes)
            finally:
                shutil.rmtree(place, ignore_errors=True)


def count_broken(figures: dict[str, Any]) -> int:
    """How often a promise was broken."""
    return sum(figures.get(name, 0) for name in BAD) + sum(
        len(figures.get(name, ())) for name in LISTS
    )


def main() -> int:
    """Attack, print a table, write the figures; 1 when a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=" ".join(PARTS))
    parser.add_argument("--small", action="store_true", help="the form of the test suite")
    parser.add_argument("--folder", type=Path, help="where to make the stores")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    words = parser.parse_args()
    sizes = SMALL if words.small else LARGE
    rows = []
    print("| attack | store on | figures | broken | s |\n|---|---|---|---|---|")
    for part, disk, figures in attack(words.folder, sizes, words.parts or list(PARTS)):
        rows.append({"part": part, "disk": disk, **figures})
        shown = {name: value for name, value in figures.items() if name not in (*LISTS, "seconds")}
        text = ", ".join(f"{name} {value}" for name, value in shown.items())
        seconds = figures.get("seconds", 0)
        print(f"| {part} | {disk} | {text} | {count_broken(figures)} | {seconds} |", flush=True)
        for line in [line for name in LISTS for line in figures.get(name, ())][:20]:
            print(f"  {line}", file=sys.stderr)
    if words.json:
        machine = {
            "machine": platform.machine(),
            "system": platform.platform(),
            "cores": os.cpu_count(),
        }
        words.json.write_text(json.dumps({**machine, "attacks": rows}, indent=2) + "\n")
    return int(any(map(count_broken, rows)))


if __name__ == "__main__":
    sys.exit(main())
