"""The log of a Lepton job as it appears: from the run's folder, or from the workspace."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from nemotron_style.runtime.launch.lepton.client import Workspace, WorkspaceError

SECONDS_BETWEEN_LOOKS = 0.25
SECONDS_BETWEEN_QUESTIONS = 3.0


class Question:
    """Asks ``over`` at most every few seconds: it costs a call over the network."""

    def __init__(self, over: Callable[[], bool], seconds: float) -> None:
        self.over, self.seconds = over, seconds
        self.asked = float("-inf")
        self.answer = False

    def __call__(self, *, now: bool = False) -> bool:
        due = now or time.monotonic() - self.asked >= self.seconds
        if not self.answer and due:
            self.asked = time.monotonic()
            self.answer = self.over()
        return self.answer


def follow_file(
    path: Path, *, over: Callable[[], bool], written: Callable[[], bool]
) -> Iterator[str]:
    """Text as it is written, and "" while nothing is.

    ``written`` is the cheap look at our own files that says when to ask ``over`` at once.
    """
    question = Question(over, SECONDS_BETWEEN_QUESTIONS)
    position = 0
    while True:
        ended = question(now=written())  # before reading: what is written is read
        text, position = read_from(path, position)
        yield text
        if ended and not text:
            return
        if not text:
            time.sleep(SECONDS_BETWEEN_LOOKS)


def read_from(path: Path, position: int) -> tuple[str, int]:
    """What stands behind a position of a file that may not be there yet; whole characters only."""
    try:
        with open(path, "rb") as file:
            file.seek(position)
            data = file.read()
    except OSError:
        return "", position
    cut = len(data)
    while cut and len(data) - cut < 4 and data[cut - 1] & 0xC0 == 0x80:
        cut -= 1  # the continuation of a character, which may not be complete
    if cut and data[cut - 1] >= 0xC0:
        width = 2 + (data[cut - 1] >= 0xE0) + (data[cut - 1] >= 0xF0)
        cut = cut - 1 if len(data) - cut + 1 < width else len(data)
    else:
        cut = len(data)
    return data[:cut].decode("utf-8", errors="replace"), position + cut


def follow_workspace(
    workspace: Workspace, job: tuple[str, int], *, since: float, over: Callable[[], bool]
) -> Iterator[str]:
    """The live log of one node's pod, then, if that gave nothing, what the workspace stored."""
    name, node = job
    question = Question(over, SECONDS_BETWEEN_QUESTIONS)
    seen = 0
    while True:
        ended = question()
        replica = find_replica(workspace, name, node)
        if replica:
            for text in pump(workspace, name, replica, skip=seen):
                seen += len(text)
                yield text
        if ended:
            break
        yield ""
        time.sleep(SECONDS_BETWEEN_LOOKS * 4)
    if not seen:
        yield recall(workspace, name, replica, since=since)


def find_replica(workspace: Workspace, name: str, node: int) -> str | None:
    """The pod of a node: ``<job>-<node>-<word>``, or by its place where names say nothing."""
    try:
        replicas = sorted(workspace.replicas(name))
    except WorkspaceError:
        return None
    named = [replica for replica in replicas if replica.startswith(f"{name}-{node}-")]
    return next(iter(named or replicas[node : node + 1]), None)


def pump(workspace: Workspace, name: str, replica: str, *, skip: int) -> Iterator[str]:
    """What a live log gives until its connection ends, behind the first ``skip`` characters.

    The SDK waits for each piece without an end, so it does that in a thread of its own.
    """
    pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read() -> None:
        try:
            for piece in workspace.follow(name, replica):
                pieces.put(piece)
        except WorkspaceError:
            pass  # a connection that breaks is made again by whoever follows
        finally:
            pieces.put(None)

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            piece = pieces.get(timeout=SECONDS_BETWEEN_LOOKS * 4)
        except queue.Empty:
            yield ""
            continue
        if piece is None:
            return
        fresh = piece[skip:]
        skip = max(0, skip - len(piece))
        if fresh:
            yield fresh


def recall(workspace: Workspace, name: str, replica: str | None, *, since: float) -> str:
    """The stored log, or why there is none."""
    try:
        return workspace.recall(name, replica, since=since, until=time.time())
    except WorkspaceError as error:
        return f"no log: {error}\n"
