"""The log of a Lepton job that only the workspace has: live as it grows, and then stored."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator

from nemotron_style.runtime.launch.lepton.client import Workspace, WorkspaceError
from nemotron_style.runtime.launch.log import Question

SECONDS_BETWEEN_LOOKS = 0.25
SECONDS_BETWEEN_QUESTIONS = 3.0


def follow_workspace(
    workspace: Workspace, job: tuple[str, int], *, since: float, over: Callable[[], bool]
) -> Iterator[str]:
    """The live log of one node's pod, then, if that gave nothing, what the workspace stored."""
    name, node = job
    question = Question(over, seconds=SECONDS_BETWEEN_QUESTIONS)
    seen = 0  # characters; a connection that is made again starts from the beginning
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
        try:
            yield workspace.recall(name, replica, since=since, until=time.time())
        except WorkspaceError as error:
            yield f"no log: {error}\n"


def find_replica(workspace: Workspace, name: str, node: int) -> str | None:
    """The pod of a node: ``<job>-<node>-<word>``, or by its order where names say nothing."""
    try:
        replicas = sorted(workspace.replicas(name))
    except WorkspaceError:
        return None
    named = [replica for replica in replicas if replica.startswith(f"{name}-{node}-")]
    return next(iter(named or replicas[node : node + 1]), None)


def pump(workspace: Workspace, name: str, replica: str, *, skip: int) -> Iterator[str]:
    """The live log until its connection ends, without the first ``skip`` characters; "" in pauses.

    The SDK waits for each piece without a time limit, so it reads in a thread of its own.
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
