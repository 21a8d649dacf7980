"""``rl/rlhf -c tiny_nemo_rl`` as it is typed, with a stand-in where NeMo-RL's tree would be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import nemo_rl_script
from nemotron_style.runtime.cli import main
from nemotron_style.runtime.store.store import Store

SCRIPT = "examples/nemo_gym/run_grpo_nemo_gym.py"
LINE = (
    "steps run rl/rlhf -c tiny_nemo_rl -r here -i model=./policy nemo_rl.version=v0.7.0 "
    "data.train.data_path=rows.jsonl data.validation.data_path=held.jsonl "
    "grpo.max_num_steps=4 grpo.val_period=1 checkpointing.save_period=1 checkpointing.keep_top_k=2"
)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with eight GPUs to be promised, a policy, prompts, and the tree."""
    files = {
        "env.toml": '[here]\nexecutor = "local"\ngpus_per_node = 8\n',
        "policy/config.json": "{}",
        "policy/tokenizer.json": "{}",
        "policy/model.safetensors": "weights",
        "rows.jsonl": "".join(json.dumps({"prompt": f"question {n}"}) + "\n" for n in range(16)),
        "held.jsonl": json.dumps({"prompt": "another"}) + "\n",
        f"tree/{SCRIPT}": Path(nemo_rl_script.__file__).read_text(),
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEMO_RL_HOME", str(tmp_path / "tree"))
    for name in ("RL_POLICY_MODEL", "RL_REWARD_MODEL", "NEMOTRON_ENV_FILE", "NEMOTRON_STYLE_HOME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_a_run_that_crashed_is_completed_by_the_same_command(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = {"version": "v0.7.0", "rewards": {"1": 2.0, "2": 4.5, "3": 3.0, "4": 3.5}}
    monkeypatch.setenv("STAND_IN", json.dumps(asked | {"crash_at": 3}))
    assert main(LINE.split()) == 1
    assert "exit code 1 after step 2 of 4" in capfd.readouterr().err
    monkeypatch.setenv("STAND_IN", json.dumps(asked))
    assert main(LINE.split()) == 0
    told = capfd.readouterr()
    assert "continuing from step_2" in told.out + told.err

    store = Store(project / ".nemotron-style")
    model, best = (store.resolve(f"rl-rlhf-tiny_nemo_rl{name}") for name in ("", ".best"))
    assert (model.kind, best.kind) == ("checkpoint_nemo_rl", "checkpoint_nemo_rl")
    assert (model.facts["step"], best.facts["step"]) == (4, 2)
    assert model.facts["ranked_by"] == "val:total_reward/mean"
    assert model.facts["judge"] == "Qwen/Qwen2.5-3B-Instruct"
    assert model.facts["reward"]["num_rollouts_per_prompt"] == 4
    assert {edge.slot for edge in model.record.inputs} == {"model", "prompts", "validation"}
    assert model.record.metrics["best_step"] == 2
    (run,) = (project / ".nemotron-style/runs").iterdir()
    assert not (run / "checkpoints").exists()
    (rows,) = (run / "nemo_rl/data").glob("prompts-*.jsonl")
    ids = [json.loads(line)["prompt_id"] for line in rows.read_text().splitlines()]
    assert len(set(ids)) == 16
    shutil.rmtree(run)  # what was committed needs nothing of it
    assert list(store.verify(model, deep=True)) == []
