"""The addresses that a process listens at, and a job that writes its own down."""

from __future__ import annotations

import json
import os
from pathlib import Path

import psutil


def addresses_of(process: psutil.Process) -> set[tuple[str, int]]:
    """Host and port of every TCP socket that waits for connections."""
    connections = process.net_connections("tcp")
    return {tuple(each.laddr) for each in connections if each.status == psutil.CONN_LISTEN}


def find_listener(port: int) -> psutil.Process:
    """The process that listens at a port of this machine."""
    [pid] = {
        each.pid
        for each in psutil.net_connections("tcp")
        if each.status == psutil.CONN_LISTEN and each.laddr.port == port
    }
    return psutil.Process(pid)


def write_addresses(out: Path) -> None:
    """Join the job as a training step does, with a collective, and write what listens then."""
    os.environ |= dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), "eth0")
    from nemotron_style.steps.blocks.model import parallel

    before = addresses_of(psutil.Process())
    parallel.initialize()
    parallel.any_rank(False)
    mine = addresses_of(psutil.Process()) - before
    rank = os.environ.get("RANK", "lone")
    (out / f"{rank}.json").write_text(json.dumps(sorted(mine)))
    parallel.finish()
