"""Processes, identified for certain, and what can be said of them from where one stands.

A process id is used again after its process has ended; together with the time it started, the boot
and the PID namespace it started in, it names one process only. A zombie counts as dead: it does
nothing any more. Of a process of another machine or container nothing can be said from here:
neither :func:`is_alive` nor :func:`is_dead` is true of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
MACHINE_ID = Path("/etc/machine-id")
UNKNOWN = -1
KERNEL_THREAD = 0x00200000  # PF_KTHREAD of the flags in /proc/PID/stat
SECONDS_OF_EXEC = 1.0  # a program may lie on a slow disk


def identify_process(pid: int) -> dict[str, Any]:
    """The identity of a process of this machine, to be stored and looked for again."""
    state = _read_state(pid)
    return {"pid": pid, "ticks": state[1] if state else UNKNOWN} | _describe_host()


def is_alive(identity: Mapping[str, Any]) -> bool:
    """Whether the process that :func:`identify_process` identified is seen to run from here."""
    return _is_in_sight(identity) and _is_running(identity) is True


def is_dead(identity: Mapping[str, Any], *, last_sign: float = float("inf")) -> bool:
    """Whether it is proven that the process has ended; an empty identity names no process.

    ``last_sign`` is when it last did something, by the clock of the disk that shows it.
    """
    if not identity.get("pid"):
        return True
    if _is_in_sight(identity):
        return _is_running(identity) is False
    here = _describe_host()
    is_same_machine = all(identity.get(name) == here[name] for name in ("host", "machine"))
    # Two machines may bear one name. But what has given a sign since this machine was started was
    # not ended by that.
    was_restarted = is_same_machine and identity.get("boot") != here["boot"]
    return was_restarted and last_sign < _read_boot_time()


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
        with contextlib.suppress(OSError):  # it belongs to somebody else
            environment = _read_environment(pid)
            state = _read_state(pid) if wanted in environment.split(b"\0") else None
            marked += [pid] if state and state[0] not in "ZX" else []
    return marked


def _read_environment(pid: int) -> bytes:
    """NAME=value pairs, each with a null byte after it; b"" of a process that has ended.

    Raises ``OSError`` for one that belongs to somebody else.
    """
    end, before = time.monotonic() + SECONDS_OF_EXEC, ("", "")
    while True:
        environment = b""
        # The first is a new kernel's word for what has no memory.
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        fields = None if environment else _read_stat(pid)
        if not fields or fields[0] in "ZX" or int(fields[6]) & KERNEL_THREAD:
            return environment
        # In the middle of execve there is nothing to read, and a process would look like one that
        # has no mark. Of a program without any environment both ends are known, and stay equal.
        ends = env_start, env_end = fields[47], fields[48]
        if (env_start == env_end != "0" and ends == before) or time.monotonic() > end:
            return environment
        before = ends
        time.sleep(0.0001)


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


def _is_in_sight(identity: Mapping[str, Any]) -> bool:
    """Whether /proc, as this process sees it, is where the identified process would appear."""
    here = _describe_host()
    if not here["boot"] or identity.get("boot") != here["boot"]:
        return False
    # Records of earlier versions name no namespace.
    namespace = here["namespace"]
    return bool(namespace) and identity.get("namespace", namespace) == namespace


def _is_running(identity: Mapping[str, Any]) -> bool | None:
    """Whether an identified process in sight runs; None where that is hidden from this user."""
    pid = int(identity["pid"])
    state = _read_state(pid)
    if state is not None:
        # The first thread of a process may be gone while others still write.
        has_ended = state[0] in "ZX" and _count_threads(pid) <= 1
        return not has_ended and identity.get("ticks") in (state[1], UNKNOWN)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's, on a machine that hides those (hidepid)
        return None
    return None


def _count_threads(pid: int) -> int:
    with contextlib.suppress(OSError):
        return len(os.listdir(f"/proc/{pid}/task"))
    return 0


def _describe_host() -> dict[str, str]:
    return _read_host(os.getpid())


@cache
def _read_host(pid: int) -> dict[str, str]:
    """Where process ``pid``, which is this one, runs; it stays there as long as it lives."""
    return {
        "host": os.uname().nodename,
        # The number itself is confidential.
        "machine": hashlib.sha256(_read_line(MACHINE_ID).encode()).hexdigest()[:12],
        "boot": _read_line(BOOT_ID),
        "namespace": _read_namespace(),
    }


def _read_namespace() -> str:
    """The PID namespace of this process; "" where /proc shows that of other processes."""
    try:
        is_own = os.readlink("/proc/self") == str(os.getpid())
        return os.readlink("/proc/self/ns/pid") if is_own else ""
    except OSError:
        return ""


def _read_boot_time() -> float:
    """When this machine was started, in seconds since the epoch; 0 where that is unknown."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/stat").read_text(encoding="utf-8").splitlines():
            if line.startswith("btime "):
                return float(line.split()[1])
    return 0.0


def _read_line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""
