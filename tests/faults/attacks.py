"""Attack a store and count what it loses: ``make faults``, the figures of docs/reliability.md.

``python tests/faults/attacks.py [--small] [--count NAME=N] [--folder FOLDER] [--json FILE]
[PART ...]`` prints a table; the exit code is 1 when a promise was broken. FOLDER is on the disk
that is to be tried, say a mount of NFS or Lustre (default: the temporary folder).
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
from full_bucket import FullBucket
from killing import kill_at_random
from publishing import publish_at_once
from refusing import NUMBERS, fill_each, refuse_each, refuse_each_in_bucket
from removing import remove_each

BAD = ("lost", "duplicate", "backwards", "torn_reads", "torn", "stuck")
LISTS = ("errors", "unsound", "wrong")
BUCKET_READ_S = 2.0  # a reader asks so often, as each request takes the processor from writers
BUCKET_KILLED_AT_ONCE = 16
LARGE = {
    "processes": 64,
    "publishes": 200,
    "kills": 1000,
    "step": 1,
    "errors": 3,
    "graphs": 1000,
    "bucket_processes": 64,
    "bucket_publishes": 200,
    "bucket_kills": 1000,
    "restart_every": 20_000,
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
    "restart_every": 40,
}
DISKS = {"local disk": nullcontext, "no hard links": disks.no_hard_links}
ONCE = ("fill", "remove", "bucket-publish", "bucket-kill", "bucket-refuse")  # not on every disk

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


def bucket_publish(folder: Path, sizes: Sizes) -> dict[str, Any]:
    """Publishing to a bucket behind a network that fails; its server is killed now and then."""

    def act(root: str, rows: Path, proxy: Any, server: Any) -> dict[str, Any]:
        from bucket import past_the_faults, restarted

        counts = {name: sizes[f"bucket_{name}"] for name in ("processes", "publishes")}
        restarts = restarted(server, proxy, every=sizes["restart_every"])
        figures = publish_at_once(
            root,
            rows,
            **counts,
            read_every_s=BUCKET_READ_S,
            meanwhile=restarts,
            looking=past_the_faults(server),
        )
        twice = [path for path, times in proxy.created.items() if times > 1]
        kept = [path for path in twice if "/.claims/" in path or "/index/output/" in path]
        return {**figures, "restarts": server.starts - 1, "created_twice": sorted(kept)}

    return _in_bucket(folder, act)


def bucket_kill(folder: Path, sizes: Sizes) -> dict[str, Any]:
    """Processes are killed, with a bucket behind a network that fails."""

    def act(root: str, rows: Path, proxy: Any, server: Any) -> dict[str, Any]:
        from bucket import past_the_faults

        return kill_at_random(
            root,
            rows,
            kills=sizes["bucket_kills"],
            at_once=min(BUCKET_KILLED_AT_ONCE, sizes["bucket_kills"]),
            looking=past_the_faults(server),
        )

    return _in_bucket(folder, act)


def bucket_refuse(folder: Path, sizes: Sizes) -> dict[str, Any]:
    """A bucket, or the scratch folder, is full at every request in turn."""
    codes = FullBucket.CODES[: sizes["errors"]]
    return refuse_each_in_bucket(folder, step=sizes["step"], codes=codes)


def _in_bucket(folder: Path, act: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    from bucket import BUCKET, lasting_bucket
    from seaweed import REASON

    if REASON:
        return {"skipped": REASON}
    rows = write_rows(folder)
    with (
        patch.dict(os.environ, {"XDG_CACHE_HOME": str(folder)}),
        lasting_bucket(folder / "server") as (proxy, server),
    ):
        figures = act(f"s3://{BUCKET}/{folder.name}", rows, proxy, server)
        befallen = {name: count for name, count in sorted(proxy.befallen.items()) if count}
        return {**figures, "requests": proxy.requests, "befallen": befallen}


PARTS: dict[str, Callable[[Path, Sizes], dict[str, Any]]] = {
    "publish": publish,
    "kill": kill,
    "refuse": refuse,
    "fill": fill,
    "remove": remove,
    "bucket-publish": bucket_publish,
    "bucket-kill": bucket_kill,
    "bucket-refuse": bucket_refuse,
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
                    disk = "S3" if part.startswith("bucket") else disk
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
    parser.add_argument(
        "--count", action="append", default=[], metavar="NAME=N", help=f"other than {LARGE}"
    )
    parser.add_argument("--folder", type=Path, help="where to make the stores")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    words = parser.parse_args()
    sizes = dict(SMALL if words.small else LARGE)
    sizes |= {name: int(count) for name, _, count in (one.partition("=") for one in words.count)}
    if unknown := sizes.keys() - LARGE.keys():
        parser.error(f"--count: there is no {', '.join(sorted(unknown))}")
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
