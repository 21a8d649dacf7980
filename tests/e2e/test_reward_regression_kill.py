"""reward/regression from the command line, killed: nothing is lost, nothing is new."""

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

from nemotron_style.runtime.store.store import Store
from nemotron_style.steps.blocks.data.toy_truth import load_truth

pytestmark = pytest.mark.slow

COMMAND = [
    *("steps", "run", "reward/regression", "-c", "tiny", "--json"),
    *("-i", "model=model", "-i", "data=rated", "-i", "validation=rated"),
    *("trainer.rm.max_epochs=null", "trainer.rm.max_steps=40", "model.data.sample=true"),
    *("trainer.rm.val_check_interval=10", "trainer.rm.save_interval=3"),
    "model.global_batch_size=8",
]


def start(store: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "nemotron_style.runtime", *COMMAND],
        env=os.environ | {"NEMOTRON_STYLE_HOME": str(store), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(store: Path) -> dict:
    process = start(store)
    output, told = process.communicate(timeout=600)
    assert process.returncode == 0, told
    return json.loads(output)


def digest(store: Path) -> str:
    made = [one for one in Store(store).artifacts() if one.kind == "reward_model"]
    assert len(made) == 1
    return made[0].record.digest


def kill_after(store: Path, step: int) -> None:
    """Kill the worker, and then the command line, once a checkpoint of ``step`` or later stands."""
    process, until = start(store), time.monotonic() + 300
    wanted = f"step-{step:08d}"
    while not any(path.name >= wanted for path in store.glob("runs/*/checkpoints/step-*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)
    newest = max(store.glob("runs/*/attempts/*/owner.json"), key=lambda path: path.stat().st_mtime)
    os.kill(json.loads(newest.read_text())["pid"], signal.SIGKILL)
    process.kill()
    process.communicate()


def test_a_killed_run_makes_the_same_bytes(small_toy, tmp_path: Path) -> None:
    truth, draw, rows = load_truth(small_toy.truth.path), random.Random(1), []
    for _ in range(64):
        noun = draw.choice(list(truth.nouns))
        prompt = truth.prompt(noun, truth.contexts[0])
        said = truth.response(noun, draw.sample(truth.adjectives, draw.randint(1, 4)))
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": said}]
        rows.append({"messages": messages, "attributes": truth.score(prompt, said)})
    (tmp_path / "rated.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    store = Store(tmp_path / "store")
    store.adopt(str(tmp_path / "rated.jsonl"), kind="rated_jsonl", name="rated")
    store.adopt(str(small_toy.model.path), kind="checkpoint_megatron", name="model")
    shutil.copytree(tmp_path / "store", tmp_path / "clean")
    finish(tmp_path / "clean")
    for step in (3, 15):
        kill_after(tmp_path / "store", step)
    finish(tmp_path / "store")
    assert digest(tmp_path / "store") == digest(tmp_path / "clean")
