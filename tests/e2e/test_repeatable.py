"""The same training from two empty stores, in surroundings that differ in all there is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nemotron_style.runtime.store.store import Store

TINY = (
    "trainer.devices=2",
    "model.tensor_model_parallel_size=2",
    "trainer.sft.max_steps=2",
    "model.data.train_ds.global_batch_size=8",
    "model.data.train_ds.micro_batch_size=4",
    "model.architecture.num_layers=2",
    "model.architecture.hidden_size=32",
    "model.architecture.ffn_hidden_size=64",
    "model.architecture.tokenizer_vocab_size=400",
)
HERE = {"TZ": "UTC", "PYTHONHASHSEED": "1", "LC_ALL": "C.UTF-8", "SOURCE_DATE_EPOCH": "0"}
THERE = {"TZ": "Asia/Tokyo", "PYTHONHASHSEED": "4711", "LC_ALL": "C", "HOME": "/proc/nobody"}


def train(folder: Path, *, umask: int, variables: dict[str, str]) -> dict[str, str]:
    """Digests by ref of all that ``sft/chat -c tiny`` makes in a project of its own."""
    folder.mkdir(parents=True)
    (folder / "env.toml").write_text("")
    for name in ("rows", "held_out"):
        (folder / f"{name}.jsonl").write_text("".join(row(number) for number in range(40)))
    words = [sys.executable, "-m", "nemotron_style.runtime", "steps", "run", "sft/chat"]
    words += ["-c", "tiny", "-i", "data=./rows.jsonl", "-i", "validation=./held_out.jsonl"]
    subprocess.run(
        [*words, "--name", "chat", *TINY],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        umask=umask,
        check=True,
        timeout=300,
    )
    return {one.ref: one.digest for one in Store(folder / ".nemotron-style").artifacts()}


def row(number: int) -> str:
    asked = {"role": "user", "content": f"Describe river {number}."}
    told = {"role": "assistant", "content": f"It is {('wide', 'calm', 'deep')[number % 3]}."}
    return json.dumps({"messages": [asked, told]}) + "\n"


def test_equal_runs_of_two_processes_are_equal_bytes(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        here = pool.submit(train, tmp_path / "a", umask=0o022, variables=HERE)
        there = pool.submit(train, tmp_path / "b/much deeper", umask=0o077, variables=THERE)
        assert here.result() == there.result()
    assert "chat:v1" in here.result()
