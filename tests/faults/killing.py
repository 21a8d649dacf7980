"""Processes that commit, adopt, tidy up and remove are killed at random moments."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from nemotron_style.runtime.store.record import Producer
from nemotron_style.runtime.store.removal import select
from nemotron_style.runtime.store.roots.s3 import S3Bucket
from nemotron_style.runtime.store.roots.snapshot import take_snapshot
from nemotron_style.runtime.store.store import Store
from nemotron_style.runtime.store.tombstone import removed_refs

ACTS = ("start", "commit", "adopt", "gc", "rm")  # nobody is killed before the first act
FORK = multiprocessing.get_context("fork")
KEPT = 12  # a killed process removes what is more than these
LONGEST_S = 0.06
MOST_REQUESTS = 150  # that a process makes of a bucket before it is killed
STARTS_IN_S = 600.0


def kill_at_random(
    root: str,
    source: Path,
    *,
    kills: int,
    at_once: int = 2,
    looking: AbstractContextManager[Any] | None = None,
    seed: int = 7,
) -> dict[str, Any]:
    """Figures of ``kills`` SIGKILLs, ``at_once`` processes at a time.

    On a disk each is killed within ``LONGEST_S`` of work, in a bucket at one of its first
    ``MOST_REQUESTS`` requests, as the time that those take depends on the machine. When all are
    dead the store is looked at; it is opened for that in ``looking``.

    ``torn``: an artifact that can be seen and is not whole, or lacks what it was made from.
    ``lost``: one that was there, and is gone without a tombstone. ``stuck``: the next command
    (a commit, and the rest of what was cut off) did not work.
    """
    began = time.monotonic()
    chance = random.Random(seed)
    store = Store(root)
    with looking or nullcontext():
        store.adopt(source, kind="raw_jsonl", name="data")
    seen: dict[str, str] = {}
    figures: Counter[str] = Counter()
    during: Counter[str] = Counter()
    wrong: list[str] = []
    while figures["kills"] < kills:
        for act in _start_and_kill(root, source, chance, at_once):
            during[act] += 1
            figures["kills"] += 1
        torn, lost, seen = _look(store, seen)
        figures["torn"] += len(torn)
        figures["lost"] += len(lost)
        wrong += [*torn, *lost]
        if error := _go_on(store, figures["kills"]):
            figures["stuck"] += 1
            wrong.append(error)
    store.finish_removals(find_in_use=dict)
    store.collect_garbage(grace_s=-1)
    checked, unsound = store.verify_all(deep=True)
    names = ("kills", "torn", "lost", "stuck")
    return {
        **{name: figures[name] for name in names},
        "during": {act: during[act] for act in ACTS[1:]},
        "left": checked,
        "removed": len(removed_refs(store.layout)),
        "unsound": [str(problem) for problem in unsound],
        "wrong": wrong,
        "seconds": round(time.monotonic() - began, 1),
    }


def _start_and_kill(root: str, source: Path, chance: random.Random, at_once: int) -> list[str]:
    """What each of the processes was at when it was killed."""
    acts, asked = ([FORK.RawValue("i", 0) for _ in range(at_once)] for _ in range(2))
    workers = [
        FORK.Process(target=_work, args=(root, source, chance.randrange(1 << 30), *at_work))
        for at_work in zip(acts, asked, strict=True)
    ]
    for worker in workers:
        worker.start()
    end = time.monotonic() + STARTS_IN_S
    while not all(act.value for act in acts) and time.monotonic() < end:
        time.sleep(0.001)
    in_bucket, began = "://" in root, time.monotonic()
    ends = [chance.uniform(LONGEST_S / 20, LONGEST_S) for _ in workers]
    turns = [chance.randrange(MOST_REQUESTS) for _ in workers]
    living = set(range(at_once))
    while living and time.monotonic() < end:
        time.sleep(chance.uniform(0, 0.002))
        lived_s = time.monotonic() - began
        for each in sorted(living):
            if asked[each].value > turns[each] if in_bucket else lived_s > ends[each]:
                workers[each].kill()
                living.remove(each)
    for worker in workers:
        worker.join()
        assert worker.exitcode == -9, "it ended by itself"
    return [ACTS[act.value] for act in acts]


def _work(root: str, source: Path, seed: int, act: Any, asked: Any) -> None:
    store, chance = Store(root), random.Random(seed)
    store.find("data:v1")  # of a bucket, a connection is there then
    _count_requests(asked)
    while True:
        # Any of them may come first, as a process is not given the time for many.
        act.value = chance.randrange(1, len(ACTS))
        match ACTS[act.value]:
            case "commit":
                make(store, f"r-{chance.randrange(1 << 20)}", "model")
            case "adopt":
                store.adopt(source, kind="raw_jsonl", name=f"data{chance.randrange(4)}")
            case "gc":
                store.collect_garbage(grace_s=3600)
            case "rm":
                remove_oldest(store)


def _count_requests(asked: Any) -> None:
    find_system = S3Bucket._system.fget  # type: ignore[attr-defined] # it is asked for at each request

    def count(bucket: S3Bucket) -> Any:
        asked.value += 1
        return find_system(bucket)

    S3Bucket._system = property(count)  # type: ignore[assignment]


def make(store: Store, run: str, name: str) -> str:
    """Commit two files, made from the newest ``data``, as the output of a run."""
    staged = store.stage(run)
    (staged / "sub").mkdir()
    (staged / "weights").write_text(run)
    (staged / "sub" / "same").write_text("the same in all")
    producer = Producer(run_id=run, step="a/b", slot="model")
    inputs = [store.resolve("data").edge("data")]
    return store.commit(staged, name=name, kind="k", producer=producer, inputs=inputs).ref


def remove_oldest(store: Store) -> None:
    """Remove the oldest models, and what nobody needs of the rest."""
    models = [artifact.ref for artifact in store.artifacts("model")]
    spare = [each.ref for each in store.artifacts() if each.record.name[4:].isdigit()]
    going = select(store.read_family(), wanted=[*models[KEPT:], *spare], keep={}).going
    store.remove(going, find_in_use=dict)


def _look(store: Store, seen: dict[str, str]) -> tuple[list[str], list[str], dict[str, str]]:
    """What is torn, what is lost, and what there is."""
    store = Store(take_snapshot(store.root) or store.root, scratch=store.local)
    artifacts = {artifact.ref: artifact for artifact in store.artifacts()}
    torn = [
        str(problem)
        for artifact in artifacts.values()
        for problem in (*store.verify(artifact, deep=True), *store.check_keys(artifact.path))
    ]
    torn += [
        f"{artifact.ref} lacks {edge.ref}"
        for artifact in artifacts.values()
        for edge in artifact.record.inputs
        if edge.ref not in artifacts
    ]
    now = {ref: artifact.digest for ref, artifact in artifacts.items()}
    gone = [ref for ref, digest in seen.items() if now.get(ref) != digest]
    return torn, [f"{ref} is lost" for ref in gone if store.tombstone(ref) is None], now


def _go_on(store: Store, number: int) -> str:
    """Why the next commands after a kill do not work; empty when they do."""
    try:
        ref = make(store, f"next-{number}-{os.getpid()}", "model")
        assert store.resolve("model").ref == ref, "the newest is not the newest"
        store.finish_removals(find_in_use=dict)
        remove_oldest(store)  # a removal that is killed has then not to read so many
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""
