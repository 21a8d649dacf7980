"""A job of NeMo-RL on two nodes: a real Ray cluster, and a stand-in for NeMo-RL's script.

``RAY_PYTHON`` names a Python that has ray and the core dependencies of this package, as the one in
NeMo-RL's image does; without it the test is skipped.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

import nemo_rl_script
from nemo_rl_job import COMPILED, SCRIPT
from nemotron_style.runtime.launch.base import JobHandle, attempt_of
from nemotron_style.runtime.process import find_marked
from nemotron_style.runtime.run.state import JobState
from nemotron_style.runtime.step.metrics import read_metrics

SOURCES = Path(__file__).resolve().parents[2] / "typings"
MANIFEST = """
[step]
id = "mill/align"
name = "align"
category = "mill"
description = "A job of NeMo-RL."

[run]
entrypoint = "nemotron_style.steps.rl.rlhf.nemo_rl.job.recipe:run"
config = "milling.align:Config"
compiler = "milling.align:compile_job"
launch = "ray"
resources = { nodes = 2 }

[[consumes]]
name = "model"
type = "checkpoint_hf"
config_key = "policy.path"

[[consumes]]
name = "prompts"
type = "prompts_jsonl"
config_key = "data.path"

[[produces]]
name = "model"
type = "checkpoint_nemo_rl"

[[produces]]
name = "best"
type = "checkpoint_nemo_rl"
required = false
"""
CODE = """
import json
from pathlib import Path

from nemotron_style.runtime.config.model import Section, StepConfig
from nemotron_style.runtime.step.compiled import CompiledJob

FILES = json.loads(Path(__file__).with_name("files.json").read_text())


class Policy(Section):
    path: str | None = None


class Data(Section):
    path: str | None = None
    default_agent_ref: str | None = None


class Config(StepConfig):
    policy: Policy = Policy()
    data: Data = Data()


def compile_job(config, site):
    return CompiledJob(files=FILES)
"""
RAY = """#!/bin/bash
# Both nodes are this host: a raylet that starts before the head's has taken its socket.
case "$2" in
  --address=*) {ray} status "$2" | grep -q worker_units || exit 1 ;;
esac
exec {ray} "$@"
"""


@pytest.fixture
def ray_python(site: Any) -> Iterator[Path]:
    if not (named := os.environ.get("RAY_PYTHON")):
        pytest.skip("RAY_PYTHON names no Python that has ray")
    yield Path(named)
    # This Slurm has no cgroups, and two `ray stop` on one host may leave a daemon.
    for pid in find_marked(f"NEMO_RL_HOME={site.mill.root / 'tree'}"):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def write_step(site: Any, *, stall_minutes: float) -> list[str]:
    """The step, its inputs, and a tree of NeMo-RL; the overrides that name the inputs."""
    job = {
        "version": "v0.7.0",
        "image": None,
        "script": SCRIPT,
        "stall_minutes": stall_minutes,
        "environment": {},
    }
    files = {"nemo_rl.yaml": yaml.safe_dump(COMPILED), "nemo_rl_job.json": json.dumps(job)}
    site.mill.write("manifests/mill/align/step.toml", MANIFEST)
    site.mill.write("manifests/mill/align/default.yaml", "{}\n")
    site.mill.write("code/milling/align.py", CODE)
    site.mill.write("code/milling/files.json", json.dumps(files))
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        site.mill.write(f"policy/{name}", "{}")
    rows = "".join(json.dumps({"prompt": f"question {number}"}) + "\n" for number in range(4))
    prompts = site.mill.write("rows.jsonl", rows)
    script = site.mill.write(f"tree/{SCRIPT}", "")
    shutil.copyfile(nemo_rl_script.__file__, script)
    return [f"policy.path={site.mill.root / 'policy'}", f"data.path={prompts}"]


def run(site: Any, python: Path, overrides: list[str], **asked: Any) -> tuple[JobHandle, JobState]:
    """One attempt: the same command, in which the stand-in does what is ``asked`` of it."""
    ray = site.mill.write("bin/ray", RAY.format(ray=python.parent / "ray"))
    ray.chmod(0o755)
    environment = {
        "NEMO_RL_HOME": str(site.mill.root / "tree"),
        "PATH": f"{ray.parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{site.mill.root / 'code'}:{SOURCES}",
        "STAND_IN": json.dumps({"version": "v0.7.0", "ray": 2, **asked}),
    }
    handle = site.submit(
        "mill/align", *overrides, python=str(python), env=environment, time="00:10:00"
    )
    return handle, site.wait(handle, timeout=480)


@pytest.mark.slow
def test_a_job_on_two_nodes_crashes_stalls_and_is_completed_by_the_same_command(
    site: Any, ray_python: Path
) -> None:
    rewards = {"1": 2.0, "2": 4.5, "3": 3.0, "4": 3.5}
    overrides = write_step(site, stall_minutes=0.5)
    handle, state = run(site, ray_python, overrides, crash_at=2, rewards=rewards)
    assert (state.state, state.exit_code) == ("FAILED", 1), site.told(handle)
    assert "exit code 1 after step 1 of 4" in state.reason
    assert "ValueError: the loss of step 2 is not a number" in state.reason
    assert "ray: 2 nodes took part" in attempt_of(handle).log.read_text()

    handle, state = run(site, ray_python, overrides, stall_at=4, rewards=rewards)
    assert (state.state, state.exit_code) == ("FAILED", 1), site.told(handle)
    assert "nothing moved for" in state.reason
    assert "after step 3 of 4" in state.reason
    assert "continuing from step_1" in attempt_of(handle).log.read_text()

    handle, state = run(site, ray_python, overrides, rewards=rewards)
    assert state.state == "COMPLETED", site.told(handle)
    assert "continuing from step_3" in attempt_of(handle).log.read_text()
    run_id = handle.run_dir.name
    model = site.mill.store.output_of(run_id, "model")
    best = site.mill.store.output_of(run_id, "best")
    assert (model.facts["step"], best.facts["step"]) == (4, 2)
    assert (model.path / "weights/iter_0000000/__0_0.distcp").read_text().endswith("of step 4")
    assert model.record.producer.attempts[0]["state"] == "FAILED"
    assert [line["step"] for line in read_metrics(handle.run_dir / "metrics.jsonl")] == [1, 2, 3, 4]
    assert not (handle.run_dir / "checkpoints").exists()
