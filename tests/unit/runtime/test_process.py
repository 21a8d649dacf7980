"""What can be said of a process from where one stands: it runs, it has ended, or neither."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hosts import pretend_to_be
from nemotron_style.runtime import process
from nemotron_style.runtime.process import find_marked, identify_process, is_alive, is_dead
from waiting import until


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen(["sleep", "100"])
    yield child
    child.kill()
    child.wait()


def answers(identity: dict[str, Any], **facts: float) -> tuple[bool, bool]:
    return is_alive(identity), is_dead(identity, **facts)


def test_it_runs_then_has_ended_and_a_number_that_is_taken_again_is_another_process(
    sleeper: subprocess.Popen[bytes],
) -> None:
    identity = identify_process(sleeper.pid)
    assert answers(identity) == (True, False)
    assert answers(identity | {"ticks": identity["ticks"] - 1}) == (False, True)
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert answers(identity) == (False, True)  # a zombie
    sleeper.wait()
    assert answers(identity) == (False, True)


FIRST_THREAD_ENDS = """
import ctypes, platform, threading, time
threading.Thread(target=time.sleep, args=(100,)).start()
number = 93 if platform.machine() == "aarch64" else 60  # exit, of this thread alone
ctypes.CDLL(None).syscall(number, 0)
"""


def test_a_process_whose_first_thread_has_ended_is_alive_while_another_works() -> None:
    child = subprocess.Popen([sys.executable, "-c", FIRST_THREAD_ENDS])
    identity = identify_process(child.pid)
    until(lambda: ") Z " in Path(f"/proc/{child.pid}/stat").read_text())
    assert answers(identity) == (True, False)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert answers(identity) == (False, True)
    child.wait()


def test_no_process_was_started() -> None:
    assert is_dead({})
    assert is_dead({"buried": True})


@pytest.mark.parametrize("change", [{"namespace": "pid:[1]"}, {"boot": "b", "host": "beta"}])
def test_nothing_is_said_of_another_machine_or_container(
    sleeper: subprocess.Popen[bytes], change: dict[str, str]
) -> None:
    identity = identify_process(sleeper.pid) | change
    sleeper.kill()
    sleeper.wait()
    assert answers(identity) == (False, False)
    assert answers(identity, last_sign=0.0) == (False, False)


def test_from_elsewhere_nothing_is_said_of_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    identity = identify_process(os.getpid())
    pretend_to_be("beta", monkeypatch)
    assert answers(identity, last_sign=0.0) == (False, False)


def test_a_machine_that_was_restarted_ended_what_has_given_no_sign_since() -> None:
    identity = identify_process(os.getpid()) | {"boot": "an earlier one"}
    assert is_dead(identity, last_sign=1.0)
    # A twin of the same name, which was not restarted.
    assert answers(identity, last_sign=time.time()) == (False, False)
    assert answers(identity | {"machine": "another"}, last_sign=1.0) == (False, False)


def test_records_of_earlier_versions_are_understood(sleeper: subprocess.Popen[bytes]) -> None:
    identity = identify_process(sleeper.pid)
    old = {name: identity[name] for name in ("pid", "ticks", "boot")}
    assert answers(old) == (True, False)
    assert answers(old | {"ticks": 1}) == (False, True)
    assert answers(old | {"boot": "another"}, last_sign=1.0) == (False, False)


def test_a_process_that_is_hidden_from_this_user_is_not_dead(
    monkeypatch: pytest.MonkeyPatch, sleeper: subprocess.Popen[bytes]
) -> None:
    """As on login nodes that mount /proc with hidepid."""
    identity = identify_process(sleeper.pid)

    def refuse(pid: int, number: int) -> None:
        raise PermissionError

    with monkeypatch.context() as patch:
        patch.setattr(process, "_read_stat", lambda pid: None)
        patch.setattr(process.os, "kill", refuse)
        assert answers(identity) == (False, False)


def test_where_proc_shows_other_processes_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a PID namespace whose /proc is still that of its parent."""
    with monkeypatch.context() as patch:
        patch.setattr(process.os, "readlink", lambda path: "1")
        process._read_host.cache_clear()
        identity = identify_process(os.getpid())
        assert identity["namespace"] == ""
        assert answers(identity) == (False, False)
    process._read_host.cache_clear()


def test_the_identity_holds_no_confidential_number() -> None:
    if process.MACHINE_ID.exists():
        assert process.MACHINE_ID.read_text().strip() not in identify_process(os.getpid()).values()


def test_a_process_that_becomes_another_program_keeps_its_mark(tmp_path: Path) -> None:
    """In the middle of execve /proc shows no environment for a moment."""
    script = tmp_path / "chain.sh"
    script.write_text('test "$1" = 0 || exec bash "$0" $(($1 - 1))')
    process = subprocess.Popen(["bash", str(script), "200"], env=os.environ | {"CHAIN": "of-execs"})
    seen = []
    while process.poll() is None:
        seen.append(process.pid in find_marked("CHAIN=of-execs"))
    assert all(seen[:-1])  # it may have ended before the last look
    assert len(seen) > 2
