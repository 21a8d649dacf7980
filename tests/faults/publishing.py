"""Many processes publish under one name at once, while others watch what is the newest."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

from nemotron_style.runtime.errors import RefError, StoreError
from nemotron_style.runtime.store.record import Producer
from nemotron_style.runtime.store.store import Store

NAME = "model"
FORK = multiprocessing.get_context("fork")  # an interpreter takes longer to start than a publish
OUTAGE_S = 180.0  # for so long a command is done again when the server does not answer

T = TypeVar("T")


def publish_at_once(
    root: str,
    source: Path,
    *,
    processes: int,
    publishes: int,
    readers: int = 2,
    read_every_s: float = 0.0,
    meanwhile: AbstractContextManager[None] | None = None,
    looking: AbstractContextManager[Any] | None = None,
) -> dict[str, Any]:
    """Figures of ``processes`` that each publish ``publishes`` times under one name.

    After every tenth each adopts the file ``source`` too, which is one artifact however often.
    ``lost``: published and not there, or not whole. ``duplicate``: a version that two were given,
    or a second artifact of what is one. ``backwards``: an older version after a newer one. What a
    server that does not answer has ended is done again (``again``), as a user would. ``looking``
    is entered when all is over, before the store is verified.
    """
    if root.startswith("s3:"):
        import s3fs  # noqa: F401 - once, and not in each of the processes
    began = time.monotonic()
    gate, stop, answers = FORK.Barrier(processes), FORK.Event(), FORK.SimpleQueue()
    writers = [
        FORK.Process(target=_publish, args=(root, source, number, publishes, gate, answers))
        for number in range(processes)
    ]
    watchers = [
        FORK.Process(target=_watch, args=(root, read_every_s, stop, answers))
        for _ in range(readers)
    ]
    for process in (*writers, *watchers):
        process.start()
    with meanwhile or nullcontext():
        said = [answers.get() for _ in writers]
        stop.set()
        seen = [answers.get() for _ in watchers]
    for process in (*writers, *watchers):
        process.join()
    refs = [ref for each in said for ref in each["refs"]]
    published_s = time.monotonic() - began
    with looking or nullcontext():
        store = Store(root)
        there = {artifact.ref: artifact for artifact in store.artifacts()}
        checked, unsound = store.verify_all(deep=True)
    damaged = {problem.where for problem in unsound}
    lost = [ref for ref in refs if ref not in there or ref in damaged]
    producers = [artifact.record.producer for artifact in there.values()]
    own = Counter(producer.run_id for producer in producers if producer)
    adopted = producers.count(None)
    return {
        "publishes": len(refs),
        "asked": processes * publishes,
        "lost": len(lost) + processes * publishes - len(refs),
        "duplicate": len(refs) - len(set(refs)) + len(own - Counter(set(own))) + adopted - 1,
        "backwards": sum(each["backwards"] for each in (*said, *seen)),
        "again": sum(each["again"] for each in said),
        "reads": sum(each["reads"] for each in seen),
        "torn_reads": sum(each["torn"] for each in seen),
        "errors": [error for each in (*said, *seen) for error in each["errors"]],
        "verified": checked,
        "unsound": [str(problem) for problem in unsound],
        "published_s": round(published_s, 1),
        "seconds": round(time.monotonic() - began, 1),
    }


def _publish(root: str, source: Path, number: int, publishes: int, gate: Any, answers: Any) -> None:
    store = Store(root)
    refs: list[str] = []
    errors: list[str] = []
    ended: list[str] = []

    def publish(run: str) -> str:
        staged = store.stage(run)
        (staged / "weights").write_text(run)
        producer = Producer(run_id=run, step="a/b", slot="model")
        return store.commit(staged, name=NAME, kind="k", producer=producer).ref

    gate.wait()
    for each in range(publishes):
        try:
            refs.append(_insist(lambda run=f"p{number}-{each}": publish(run), ended))
            if each % 10 == 0:
                _insist(lambda: store.adopt(source, kind="raw_jsonl", name="rows"), ended)
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}")
    backwards = _count_backwards(map(_version, refs))
    said = {"refs": refs, "backwards": backwards, "errors": errors, "again": len(ended)}
    answers.put(said)
    os._exit(0)  # nothing of pytest, which was forked too, shall run


def _watch(root: str, every_s: float, stop: Any, answers: Any) -> None:
    store = Store(root)
    versions: list[int] = []
    torn, errors = 0, []
    while not stop.wait(every_s):
        try:
            newest = store.resolve(NAME)
            torn += bool(store.verify(newest, deep=True))
            if versions[-1:] == [newest.record.version]:
                time.sleep(0.002)  # nobody is done: leave the processor to those that publish
            versions.append(newest.record.version)
        except StoreError:  # the server does not answer
            time.sleep(0.5)
        except RefError:
            torn += bool(versions)  # there was one before
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}")
    backwards = _count_backwards(versions)
    answers.put({"reads": len(versions), "backwards": backwards, "torn": torn, "errors": errors})
    os._exit(0)


def _insist(act: Callable[[], T], ended: list[str]) -> T:
    """Do something again for as long as the server does not answer; ``ended`` gets each message."""
    end = time.monotonic() + OUTAGE_S
    while True:
        try:
            return act()
        except StoreError as error:
            ended.append(str(error))
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


def _version(ref: str) -> int:
    return int(ref.rpartition(":v")[2])


def _count_backwards(versions: Iterable[int]) -> int:
    newest = backwards = 0
    for version in versions:
        backwards += version < newest
        newest = max(newest, version)
    return backwards
