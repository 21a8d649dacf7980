"""sft/chat from the command line, killed while two ranks divide its model, goes on divided anew."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from nemotron_style.runtime.step.metrics import read_metrics
from nemotron_style.runtime.store.store import Store
from waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ranks")]

ROWS, BATCH = 40, 4
TINY = (
    *("trainer.samples.prompts=0", "trainer.sft.save_interval=3"),
    *("trainer.sft.val_check_interval=0", "trainer.sft.max_steps=-1", "trainer.sft.max_epochs=1"),
    f"model.data.train_ds.global_batch_size={BATCH}",
    "model.data.train_ds.micro_batch_size=2",
    "model.architecture.num_layers=2",
    "model.architecture.hidden_size=32",
    "model.architecture.ffn_hidden_size=64",
    "model.architecture.tokenizer_vocab_size=400",
)
TENSOR = ("trainer.devices=2", "model.tensor_model_parallel_size=2")
DATA = ("trainer.devices=2",)
ONE = ("trainer.devices=1",)


def command(project: Path, *division: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "nemotron_style.runtime", "steps", "run", "sft/chat"]
    words += ["-c", "tiny", "-i", "data=./rows.jsonl", "-i", "validation=./rows.jsonl", "--json"]
    return subprocess.Popen(
        [*words, *TINY, *division],
        cwd=project,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(project: Path, *division: str) -> dict[str, Any]:
    """The run that the command line tells of."""
    output, told = (process := command(project, *division)).communicate(timeout=400)
    assert process.returncode == 0, told
    run: dict[str, Any] = json.loads(output)["runs"][-1]
    return run


def metrics(project: Path) -> list[dict[str, Any]]:
    files = list(project.glob(".nemotron-style/runs/sft-chat-*/metrics.jsonl"))
    return [line for file in files for line in read_metrics(file) if "train_loss" in line]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose run was killed at two tensor ranks, after the state of step 3."""
    project = tmp_path_factory.mktemp("killed")
    (project / "env.toml").write_text("")
    words = ("wide", "calm", "deep", "old", "grey")
    rows = [
        [
            {"role": "user", "content": f"Describe river {number}."},
            {"role": "assistant", "content": " ".join(words[: 1 + number % 5]) + "."},
        ]
        for number in range(ROWS)
    ]
    lines = (json.dumps({"messages": row}) + "\n" for row in rows)
    (project / "rows.jsonl").write_text("".join(lines))
    process = command(project, *TENSOR)

    def worker() -> int | None:
        owners = list(project.glob(".nemotron-style/runs/sft-chat-*/attempts/1/owner.json"))
        reached = owners and any(line["step"] >= 4 for line in metrics(project))
        return json.loads(owners[0].read_text())["pid"] if reached else None

    until(lambda: worker() or process.poll() is not None, seconds=300)
    pid = worker()
    assert pid, process.communicate()
    os.kill(pid, signal.SIGKILL)
    _, told = process.communicate(timeout=300)
    assert process.returncode == 1, told
    kinds = {one.kind for one in Store(project / ".nemotron-style").artifacts()}
    assert "checkpoint_megatron" not in kinds
    return project


def test_a_killed_run_goes_on_with_another_division(killed: Path, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    for name in ("env.toml", "rows.jsonl"):
        shutil.copy(killed / name, tmp_path / "whole")
    for name in ("data", "one"):
        shutil.copytree(killed, tmp_path / name)
    divisions = {"whole": ONE, "data": DATA, "one": ONE}
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(finish, tmp_path / name, *divisions[name]) for name in divisions]
        whole, *continued = [run.result() for run in runs]
    assert whole["decision"] == "run"
    assert [run["decision"] for run in continued] == ["resume", "resume"]
    assert {run["run_id"] for run in continued} == {whole["run_id"]}
    expected = metrics(tmp_path / "whole")
    for name in ("data", "one"):
        lines = metrics(tmp_path / name)
        # each step once, and with it each row: an epoch is every row once
        assert [line["step"] for line in lines] == [*range(1, ROWS // BATCH + 1)]
        for line, other in zip(lines, expected, strict=True):
            assert line["target_tokens"] == other["target_tokens"]
            assert line["train_loss"] == pytest.approx(other["train_loss"], rel=1e-5)
