"""rl/rlhf from the command line, its worker or its judge killed: the weights are the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

import rlhf_world as world_of
from held_port import hold_port
from nemotron_style.runtime.process import is_alive
from nemotron_style.runtime.store.store import Store

pytestmark = pytest.mark.slow


STEPS = 8


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return world_of.make_world(tmp_path_factory.mktemp("rlhf"))


def configure(folder, judge):
    """A config file of the small world that asks ``judge``."""
    values = json.loads(json.dumps(world_of.SETTINGS))
    values["grpo"] |= {"max_num_steps": STEPS}
    values["judge"] |= {"url": judge.url, "timeout": 60.0, "ready_seconds": 120.0}
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def start(store, config):
    inputs = ("model=start", "prompts=train", "validation=validation")
    given = [word for each in inputs for word in ("-i", f"{each}:v1")]
    command = ["steps", "run", "rl/nemo_rl/rlhf", "-c", str(config), "--json", *given]
    return subprocess.Popen(
        [sys.executable, "-m", "nemotron_style.runtime", *command],
        env=os.environ | {"NEMOTRON_STYLE_HOME": str(store), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def copy_of(world, folder):
    store = Store(folder / "store")
    for artifact in (world.model, world.prompts, world.validation):
        staged = store.stage(artifact.record.name)
        for file in artifact.record.files:
            target = staged / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((artifact.path / file.path).read_bytes())
        store.commit(
            staged, name=artifact.record.name, kind=artifact.kind, facts=dict(artifact.facts)
        )
    return folder / "store"


def produced(store):
    [model] = [one for one in Store(store).artifacts() if one.record.producer]
    return model


def finish(store, config):
    process = start(store, config)
    _, told = process.communicate(timeout=600)
    assert process.returncode == 0, told


def lines(store):
    found = list(Path(store).glob("runs/rl-rlhf-*/metrics.jsonl"))
    return len(found[0].read_bytes().splitlines()) if found else 0


def wait_for(condition, process, seconds=300):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        if condition():
            return
        time.sleep(0.005)
    assert process.poll() is not None, "nothing happened in time"


def kill_at(store, process, *, attempt, line):
    """SIGKILL the worker once ``metrics.jsonl`` has so many lines."""
    wait_for(lambda: lines(store) >= line, process)
    [owner] = store.glob(f"runs/rl-rlhf-*/attempts/{attempt}/owner.json")
    worker = json.loads(owner.read_text())
    assert is_alive(worker)
    os.kill(worker["pid"], signal.SIGKILL)
    process.communicate(timeout=300)
    assert process.returncode != 0


def reset(handler):
    handler.reset()


@pytest.fixture(scope="module")
def killed(world, tmp_path_factory):
    """The store of a run whose trainer and judge were killed, and what a calm run ended with."""
    folder = tmp_path_factory.mktemp("killed")
    store, judge = copy_of(world, folder), world_of.Judge()
    with judge.serve():
        config = configure(folder, judge)
        calm = world.train_in(folder / "calm", f"grpo.max_num_steps={STEPS}", url(judge))
        kill_at(store, start(store, config), attempt=1, line=2)
        # Whatever it asks once five lines are there: it need not be quick to notice them here.
        judge.fault = lambda _number, _body: reset if lines(store) >= 5 else None
        process = start(store, config)
        wait_for(lambda: lines(store) >= 5, process)
    held = hold_port(urlsplit(judge.url).port or 0)
    _, told = process.communicate(timeout=300)  # nobody listens any more
    assert process.returncode not in (0, None)
    assert "judgements failed" in told
    assert "the same command resumes the run" in told
    assert "Traceback" not in told
    judge.fault = lambda _number, _body: None
    with held, judge.serve(urlsplit(judge.url).port):
        finish(store, config)
    return store, calm


def test_a_killed_trainer_and_a_killed_judge_change_nothing(killed):
    store, calm = killed
    assert produced(store).facts["weights_digest"] == calm.output("model").facts["weights_digest"]
    [run] = store.glob("runs/rl-rlhf-*")
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [(line["step"], line["loss"]) for line in found if "loss" in line]
    expected = [(line["step"], line["loss"]) for line in calm.metrics.history() if "loss" in line]
    assert [step for step, _ in steps] == list(range(1, STEPS + 1))
    assert steps == expected


def url(judge):
    return f'judge.url="{judge.url}"'


def test_a_job_for_nemo_rl_says_that_it_is_not_there_before_any_work(world, tmp_path):
    store = copy_of(world, tmp_path)
    command = ["steps", "run", "rl/rlhf", "-c", "default", "-i", "model=start:v1"]
    command.append("grpo.num_prompts_per_step=4")  # there are 12 rows
    said = {}
    for flag in ("--dry-run", "--json"):
        said[flag] = subprocess.run(
            [
                sys.executable,
                "-m",
                "nemotron_style.runtime",
                *command,
                "-i",
                "prompts=train:v1",
                flag,
            ],
            env=os.environ | {"NEMOTRON_STYLE_HOME": str(store), "NEMO_RL_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
    assert said["--dry-run"].returncode == 0
    assert "genrm_compare_resources_server" in said["--dry-run"].stdout
    assert said["--json"].returncode == 2
    told = said["--json"].stdout + said["--json"].stderr
    assert "NeMo-RL is not here; run in its image, or set NEMO_RL_HOME to its tree" in told
    assert "Traceback" not in told
