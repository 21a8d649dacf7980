"""A tree of NeMo-RL with a stand-in for its script, and one run of the job in it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

import nemo_rl_script
from nemotron_style.runtime.step.context import StepContext, Stop
from nemotron_style.runtime.store.record import Artifact
from nemotron_style.runtime.store.store import Store
from nemotron_style.steps.rl.rlhf.nemo_rl.job.recipe import run
from nemotron_style.steps.rl.rlhf.nemo_rl.job_variables import CONFIG_FILE, JOB_FILE, JobVariable

SCRIPT = "examples/nemo_gym/run_grpo_nemo_gym.py"
COMPILED: dict[str, Any] = {
    "grpo": {
        "num_prompts_per_step": 2,
        "num_generations_per_prompt": 4,
        "max_num_epochs": 9,
        "max_num_steps": 4,
        "val_period": 1,
        "val_at_start": False,
        "val_at_end": True,
        "max_val_samples": None,
        "seed": 1,
    },
    "loss_fn": {"reference_policy_kl_penalty": 0.01},
    "policy": {
        "model_name": JobVariable.POLICY_MODEL.reference,
        "train_global_batch_size": "${mul:${grpo.num_prompts_per_step},4}",
    },
    "data": {"train": {"data_path": JobVariable.TRAIN_DATA.reference}},
    "env": {
        "should_use_nemo_gym": True,
        "nemo_gym": {
            "config_paths": ["resources_servers/genrm_compare/configs/genrm_compare.yaml"],
            "genrm_model_name": "a-judge",
            "genrm_compare_resources_server": {
                "resources_servers": {"genrm_compare": {"num_rollouts_per_prompt": 4}}
            },
        },
    },
    "checkpointing": {
        "enabled": True,
        "checkpoint_dir": JobVariable.CHECKPOINTS.reference,
        "metric_name": "val:total_reward/mean",
        "higher_is_better": True,
        "keep_top_k": None,
        "save_period": 1,
    },
    "logger": {"log_dir": JobVariable.LOGS.reference, "tensorboard_enabled": True},
    "cluster": {"gpus_per_node": 2, "num_nodes": 1},
}


@dataclass
class JobWorld:
    """Inputs, a tree, and a run's folder; every :meth:`run` is an attempt of the same run."""

    root: Path
    monkeypatch: Any
    compiled: dict[str, Any] = field(default_factory=lambda: json.loads(json.dumps(COMPILED)))
    version: str = "v0.6.0"
    stall_minutes: float = 60.0
    attempt: int = 0
    rows: int = 4
    stop: Stop = field(default_factory=Stop)

    def __post_init__(self) -> None:
        script = self.root / "tree" / SCRIPT
        script.parent.mkdir(parents=True)
        shutil.copyfile(nemo_rl_script.__file__, script)
        package = self.root / "tree/nemo_rl/package_info.py"
        package.parent.mkdir()
        package.write_text("MAJOR = 0\nMINOR = 6\nPATCH = 0\n")
        self.monkeypatch.setenv("NEMO_RL_HOME", str(self.root / "tree"))
        self.store = Store(self.root / "store")
        self.inputs = {"model": self.add_model(), "prompts": self.add_prompts(self.rows)}

    @property
    def run_dir(self) -> Path:
        return self.root / "run"

    @property
    def checkpoints(self) -> Path:
        return self.run_dir / "checkpoints/nemo_rl"

    def add(self, name: str, kind: str, files: Mapping[str, str]) -> Artifact:
        folder = self.store.stage(name)
        for place, text in files.items():
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            (folder / place).write_text(text)
        return self.store.commit(folder, name=name, kind=kind)

    def add_model(self, weights: str = "weights") -> Artifact:
        files = {"config.json": "{}", "model.safetensors": weights, "tokenizer.json": "{}"}
        return self.add("policy", "checkpoint_hf", files)

    def add_prompts(self, rows: int) -> Artifact:
        lines = [json.dumps({"prompt": f"question {number}"}) for number in range(rows)]
        return self.add("prompts", "prompts_jsonl", {"rows.jsonl": "\n".join(lines) + "\n"})

    def run(self, **asked: Any) -> StepContext:
        """One attempt. The stand-in does what is ``asked`` of it."""
        self.attempt += 1
        self.monkeypatch.setenv("STAND_IN", json.dumps({"version": self.version, **asked}))
        job = {
            "version": self.version,
            "image": "nemo-rl:test",
            "script": SCRIPT,
            "stall_minutes": self.stall_minutes,
            "environment": {},
        }
        self.ctx = ctx = StepContext(
            run_dir=self.run_dir,
            inputs=self.inputs,
            outputs=("model", "best"),
            attempt=self.attempt,
            stop=self.stop,
            files={CONFIG_FILE: yaml.safe_dump(self.compiled), JOB_FILE: json.dumps(job)},
        )
        ctx.metrics.rewind(0)  # as the worker does before every attempt
        config: Any = SimpleNamespace(data=SimpleNamespace(default_agent_ref=None))
        try:
            run(config, ctx)
        finally:
            ctx.metrics.close()
        return ctx
