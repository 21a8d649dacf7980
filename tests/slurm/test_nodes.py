"""Jobs of two nodes: torchrun meets at the first one's address, and Ray forms a cluster."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from nemotron_style.runtime.launch.base import attempt_of

RECIPE = """
import os

import torch
import torch.distributed as dist

from nemotron_style.runtime.errors import InputError


def run(config, ctx):
    dist.init_process_group("gloo")
    total = torch.tensor([10.0 ** ctx.rank])
    dist.all_reduce(total)
    place = [None] * ctx.world_size
    dist.all_gather_object(place, (ctx.rank, os.environ["SLURM_NODEID"], ctx.local_rank))
    if config.refuse_at and ctx.rank == config.refuse_at:
        raise InputError("the second machine has wet grain")
    if config.hold_at and ctx.rank == config.hold_at:
        os._exit(77)
    dist.barrier()
    os.write(1, f"rank {ctx.rank} is done\\n".encode())
    if ctx.is_first:
        (ctx.output("sack").path / "sack.txt").write_text(f"{int(total)} {place}")
        (ctx.output("chaff").path / "chaff.txt").write_text("-")
"""

RAY_RECIPE = """
import os


def run(config, ctx):
    (ctx.output("sack").path / "sack.txt").write_text(os.environ["RAY_ADDRESS"])
    (ctx.output("chaff").path / "chaff.txt").write_text("-")
    if config.raise_at:
        raise RuntimeError("the driver broke")
"""

FAKE_RAY = r"""#!/bin/bash
[ -z "$SLURM_JOB_ID" ] || exit 8  # Ray would hand them to all workers
started_with() { tr '\0' '\n' </proc/$PPID/environ | sed -n "s/^$1=//p"; }
SLURM_NODEID=$(started_with SLURM_NODEID)
place=$FAKE_RAY/$(started_with SLURM_JOB_ID)
mkdir -p "$place"
echo "$SLURM_NODEID $*" >>"$place/said"
case "$1 $2" in
  "start --head") echo 1 >"$place/unit-head" ;;
  "start --address"*) [ -e "$place/unit-head" ] || exit 1; echo 1 >"$place/unit-$SLURM_NODEID" ;;
  status*)
    echo "Resources"
    echo " 0.0/16.0 CPU"
    echo " 0.0/$(($(cat "$place"/unit-* | wc -l) * FAKE_UNITS)).0 worker_units" ;;
  stop*) : ;;
  *) exit 9 ;;
esac
"""

MANIFEST = """
[step]
id = "mill/{name}"
name = "{name}"
category = "mill"
description = "Many machines."

[run]
entrypoint = "milling.{name}:run"
config = "milling.config:Config"
launch = "{launch}"
resources = {{ nodes = 2, processes = {processes} }}

[[produces]]
name = "sack"
type = "grain"

[[produces]]
name = "chaff"
type = "stone"
"""


def add(site: Any, name: str, recipe: str, *, launch: str, processes: int = 1) -> str:
    manifest = MANIFEST.format(name=name, launch=launch, processes=processes)
    site.mill.write(f"manifests/mill/{name}/step.toml", manifest)
    site.mill.write(f"manifests/mill/{name}/default.yaml", "steps: 4\n")
    site.mill.write(f"code/milling/{name}.py", recipe)
    return f"mill/{name}"


@pytest.mark.slow
def test_torchrun_joins_the_processes_of_two_nodes(site: Any) -> None:
    step = add(site, "gather", RECIPE, launch="torchrun", processes=2)
    handle = site.submit(step, time="00:05:00", max_requeues=1)
    state = site.wait(handle)
    assert state.state == "COMPLETED", site.told(handle)
    made = site.mill.store.output_of(handle.run_dir.name, "sack")
    places = [(0, "0", 0), (1, "0", 1), (2, "1", 0), (3, "1", 1)]
    assert (made.path / "sack.txt").read_text() == f"1111 {places}"
    second = attempt_of(handle).log_of(1)
    assert "rank 3 is done" in second.read_text()
    assert "rank 2 is done" in "".join(site.launcher.logs(handle, node=1))
    site.cluster.await_state(site.job_id(handle), "COMPLETED")
    assert (attempt_of(handle).path / "exit-1").read_text() == "0\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "code", "reason"),
    [("refuse_at=1", 2, "the second machine has wet grain"), ("hold_at=1", 1, "")],
)
def test_a_failure_of_the_second_node_is_the_one_that_is_told(
    site: Any, override: str, code: int, reason: str
) -> None:
    step = add(site, "gather", RECIPE, launch="torchrun")
    handle = site.submit(step, override)
    state = site.wait(handle)
    assert (state.state, state.exit_code) == ("FAILED", code), site.told(handle)
    assert reason in state.reason
    assert site.cluster.await_state(site.job_id(handle), "FAILED")["ExitCode"] == f"{code}:0"


@pytest.fixture
def fake_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for ``ray`` on the path; where it notes what it was told."""
    program = tmp_path / "bin" / "ray"
    program.parent.mkdir()
    program.write_text(FAKE_RAY)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.setenv("FAKE_RAY", str(tmp_path / "ray"))
    monkeypatch.setenv("FAKE_UNITS", "8")
    return tmp_path / "ray"


def read_said(folder: Path, node: int) -> list[str]:
    lines = (next(folder.iterdir()) / "said").read_text().splitlines()
    return [line[2:] for line in lines if line.startswith(f"{node} ") and " status" not in line]


def test_ray_counts_a_unit_for_each_gpu(site: Any) -> None:
    plan = site.plan(add(site, "drive", RAY_RECIPE, launch="ray"), gpus_per_node=8)
    text = site.launcher.compile(plan).files["launch.sh"]
    assert "units=16" in text
    assert """resources='{"worker_units": 8, "slurm_managed_ray_cluster": 1}'""" in text


@pytest.mark.parametrize(("override", "code"), [("steps=4", 0), ("raise_at=1", 1)])
def test_the_driver_decides_how_a_ray_job_ends(
    site: Any, fake_ray: Path, monkeypatch: pytest.MonkeyPatch, override: str, code: int
) -> None:
    monkeypatch.setenv("FAKE_UNITS", "1")
    step = add(site, "drive", RAY_RECIPE, launch="ray")
    handle = site.submit(step, override)
    state = site.wait(handle)
    assert state.exit_code == code, site.told(handle)
    job = site.cluster.await_state(site.job_id(handle), "COMPLETED", "FAILED")
    assert job["ExitCode"] == f"{code}:0"
    port = 9000 + int(site.job_id(handle)) % 900
    units = json.dumps({"worker_units": 1, "slurm_managed_ray_cluster": 1})
    head, worker = read_said(fake_ray, 0), read_said(fake_ray, 1)
    flags = f"--min-worker-port=10002 --max-worker-port=11000 --resources={units}"
    flags += " --disable-usage-stats"
    assert head == [
        f"start --head --node-ip-address=127.0.0.1 --port={port} {flags}",
        "stop",
    ]
    assert worker[-2:] == [f"start --address=127.0.0.1:{port} {flags}", "stop"]
    if code == 0:
        made = site.mill.store.output_of(handle.run_dir.name, "sack")
        assert (made.path / "sack.txt").read_text() == f"127.0.0.1:{port}"


def test_a_ray_job_whose_machines_do_not_gather_gives_up(
    site: Any, fake_ray: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_UNITS", "0")
    monkeypatch.setattr("nemotron_style.runtime.launch.ray.SECONDS_TO_GATHER", 3)
    step = add(site, "drive", RAY_RECIPE, launch="ray")
    handle = site.submit(step)
    state = site.wait(handle)
    assert (state.state, state.exit_code) == ("FAILED", 1), site.told(handle)
    assert "0 of 2 worker units after 3 seconds" in attempt_of(handle).log.read_text()


def test_ray_on_one_node_is_the_driver_alone(site: Any) -> None:
    step = add(site, "drive", RAY_RECIPE, launch="ray")
    plan = site.plan(step).model_copy(update={"resources": {"nodes": 1, "processes": 1}})
    text = site.launcher.compile(plan).files["launch.sh"]
    assert "ray start" not in text
    assert f"{sys.executable} -m nemotron_style.runtime.worker" in text
