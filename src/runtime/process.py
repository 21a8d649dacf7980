"""Processes of this machine, identified for certain.

A process id is used again after its process has ended; together with the time it started and the
boot it started in, it names one process only. A zombie counts as dead: it does nothing any more.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def identify_process(pid: int) -> dict[str, Any]:
    """The identity of a process, to be stored, by which :func:`is_alive` finds it again."""
    state = _read_state(pid)
    return {"pid": pid, "ticks": state[1] if state else -1, "boot": _boot()}


def is_alive(identity: Mapping[str, Any]) -> bool:
    """Whether the process that :func:`identify_process` identified still runs."""
    if identity.get("boot") != _boot():
        return False
    state = _read_state(int(identity.get("pid", -1)))
    return state is not None and state[0] not in "ZX" and state[1] == identity.get("ticks")


def kill_family(pid: int) -> None:
    """SIGKILL for a process, everything it started, and their process groups."""
    for member in (pid, *_descendants(pid)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getpgid(member) == member:
                os.killpg(member, signal.SIGKILL)
            os.kill(member, signal.SIGKILL)


def find_marked(mark: str) -> list[int]:
    """Living processes that were started with ``NAME=value`` in their environment.

    A mark is inherited, so it finds what a job has started also when the chain of parents is
    broken: ranks whose launcher was killed, a worker in a container.
    """
    wanted = mark.encode(errors="surrogateescape")
    marked = []
    for pid in _all_pids():
        with contextlib.suppress(OSError):  # it ended meanwhile, or belongs to somebody else
            environment = Path(f"/proc/{pid}/environ").read_bytes()
            state = _read_state(pid) if wanted in environment.split(b"\0") else None
            marked += [pid] if state and state[0] not in "ZX" else []
    return marked


def _descendants(pid: int) -> list[int]:
    parents = {child: int(fields[1]) for child in _all_pids() if (fields := _read_stat(child))}
    family = [pid]
    for member in family:  # it grows while it is read
        family += [child for child, parent in parents.items() if parent == member]
    return family[1:]


def _all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _read_state(pid: int) -> tuple[str, int] | None:
    """The state letter and the start time, in clock ticks since boot."""
    fields = _read_stat(pid)
    return (fields[0], int(fields[19])) if fields else None


def _read_stat(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text[text.rindex(")") + 2 :].split()  # the name before it may hold anything


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
