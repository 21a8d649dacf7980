"""A job of several processes, as ``torchrun`` would start them, without its cost.

A rank of ``torchrun`` spends seconds importing torch and megatron-core. Here one process per test
session imports them, and every rank is a fork of it.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from held_port import hold_port

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "nemotron_style.steps.blocks.checkpoint.model_checkpoint",
        "nemotron_style.steps.blocks.generation.engine",
        "nemotron_style.steps.blocks.training.training_state",
    ]
)


def run_ranks(job: Callable[..., None], *arguments: Any, log: Path, count: int = 2) -> None:
    """Call ``job(*arguments)`` in ``count`` processes that find each other.

    ``job`` must be a function of a module. Raises AssertionError with the end of ``log``, which
    holds what the ranks print, when one of them fails or all take longer than nine minutes.
    """
    held = hold_port()  # until the first rank listens there
    port = held.getsockname()[1]
    ranks = [
        CONTEXT.Process(target=_be_rank, args=(rank, count, port, log, job, arguments))
        for rank in range(count)
    ]
    for process in ranks:
        process.start()
    deadline = time.monotonic() + 540
    try:
        left = list(ranks)
        while left and all(not process.exitcode for process in ranks):
            ready = wait([process.sentinel for process in left], deadline - time.monotonic())
            assert ready, f"the ranks do not end:\n{_end_of(log)}"
            left = [process for process in left if process.sentinel not in ready]
        for process in ranks:
            if process not in left:
                process.join()
        codes = [process.exitcode for process in ranks]
        assert codes == [0] * count, f"exit codes {codes}:\n{_end_of(log)}"
    finally:
        held.close()
        for process in ranks:
            process.kill()
            process.join()


def _be_rank(
    rank: int, count: int, port: int, log: Path, job: Callable[..., None], arguments: tuple[Any]
) -> None:
    with log.open("ab") as output:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(output.fileno(), stream.fileno())
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    job(*arguments)


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-4000:] if log.exists() else "nothing was printed"
