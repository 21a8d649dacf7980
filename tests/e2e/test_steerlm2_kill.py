"""sft/steerlm2 from the command line, killed at random moments: nothing is lost, nothing is new."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import steerlm2_world
from nemotron_style.runtime.process import is_alive
from nemotron_style.runtime.store.store import Store
from nemotron_style.steps.sft.steerlm2.config import Config
from nemotron_style.steps.sft.steerlm2.recipe import run

COMMAND = [
    *("steps", "run", "sft/steerlm2", "-c", "tiny", "--json"),
    *("-i", "model=start", "-i", "data=train", "-i", "validation=validation"),
    "trainer.sft.max_epochs=15",
    "trainer.sft.val_check_interval=3",
    "model.data.train_ds.global_batch_size=4",
]
STEPS = 45
KILLS = 2


def start(store):
    return subprocess.Popen(
        [sys.executable, "-m", "nemotron_style.runtime", *COMMAND],
        env=os.environ | {"NEMOTRON_STYLE_HOME": str(store), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(store):
    process = start(store)
    output, told = process.communicate(timeout=600)
    assert process.returncode == 0, told
    return json.loads(output)


def produced(store):
    return [artifact for artifact in Store(store).artifacts() if artifact.record.producer]


def wait_for(condition, process, seconds=300):
    """The first true value of ``condition``; None when the process ends before it comes true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        if process.poll() is not None:
            return None
        time.sleep(0.005)
    raise AssertionError("nothing happened in time")


def newest_worker(store, attempt):
    """The process of an attempt, once it has begun."""
    found = list(Path(store).glob(f"runs/sft-steerlm2-*/attempts/{attempt}/owner.json"))
    return json.loads(found[0].read_text()) if found else None


def lines(store):
    found = list(Path(store).glob("runs/sft-steerlm2-*/metrics.jsonl"))
    return len(found[0].read_bytes().splitlines()) if found else 0


def kill_at(store, *, attempt, line):
    """Run until ``metrics.jsonl`` has so many lines, then SIGKILL the worker."""
    process = start(store)
    worker = wait_for(lambda: newest_worker(store, attempt), process)
    wait_for(lambda: lines(store) >= line, process)
    if worker and is_alive(worker):
        os.kill(worker["pid"], signal.SIGKILL)
    process.communicate(timeout=300)
    return process.returncode


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    made = steerlm2_world.make_world(tmp_path_factory.mktemp("world"))
    made.data("train", made.train)
    made.data("validation", made.validation)
    return made


@pytest.fixture(scope="module")
def killed(world, tmp_path_factory):
    """The store of a run that was killed at random moments, and continued to its end."""
    store = tmp_path_factory.mktemp("killed") / "store"
    shutil.copytree(world.store.root, store)
    draw = random.Random(os.environ.get("STEERLM2_KILL_SEED", "1"))
    for attempt, line in enumerate(sorted(draw.sample(range(1, 2 * STEPS // 3), KILLS)), start=1):
        code = kill_at(store, attempt=attempt, line=line)
        assert code == 1
        assert produced(store) == []
    finish(store)
    return store


@pytest.mark.slow
def test_killed_at_random_and_run_again_gives_the_same_weights(world, killed, tmp_path):
    (run_dir,) = killed.glob("runs/sft-steerlm2-*")
    config = Config.model_validate(json.loads((run_dir / "plan.json").read_text())["config"])
    untouched = world.context(tmp_path / "untouched")
    run(config, untouched)
    expected = untouched.output("model").facts

    (artifact,) = produced(killed)
    assert artifact.facts["weights_digest"] == expected["weights_digest"]
    assert artifact.facts["best_step"] == expected["best_step"]
    assert Store(killed).verify(artifact, deep=True) == []
    assert len(artifact.record.producer.attempts) == KILLS + 1
