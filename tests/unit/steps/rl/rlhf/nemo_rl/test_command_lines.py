"""The command lines of the documentation, as they are typed on a machine that has nothing yet."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from nemotron_style.runtime.cli import main
from nemotron_style.runtime.validation import get_key

PAGE = Path(__file__).parents[6] / "docs" / "steps" / "rl-rlhf.md"
JUDGE = "env.nemo_gym.genrm_model.responses_api_models.vllm_model.model"
TINY = "rl/nemo_rl/rlhf -c tiny"
DEFAULT = "rl/nemo_rl/rlhf -c default"
LEPTON = (
    f"{DEFAULT} -r lepton_rl_nemo_rl_rlhf {JUDGE}=nvidia/Nemotron-Reward-Model "
    "grpo.num_generations_per_prompt=16"
)
SLURM = (
    f"{DEFAULT} -b slurm_rl_nemo_rl_rlhf grpo.max_num_steps=1000 "
    "data.train.data_path=/lustre/rlhf/train.jsonl "
    "data.validation.data_path=/lustre/rlhf/val.jsonl"
)


@pytest.fixture(autouse=True)
def fresh_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RL_POLICY_MODEL", "RL_REWARD_MODEL", "NEMOTRON_ENV_FILE", "NEMOTRON_STYLE_HOME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "env.toml").touch()
    monkeypatch.chdir(tmp_path)


def show(capsys: pytest.CaptureFixture[str], line: str) -> dict[str, Any]:
    """The last run of a dry run as plain data, with what NeMo-RL will read under ``yaml``."""
    assert main(["steps", "run", *line.split(), "--dry-run", "--json"]) == 0
    run: dict[str, Any] = json.loads(capsys.readouterr().out)["runs"][-1]
    text = run["plan"].get("files", {}).get("nemo_rl.yaml")
    return run | {"yaml": yaml.safe_load(text) if text else None}


def test_tiny_is_the_embedded_loop(capsys: pytest.CaptureFixture[str]) -> None:
    plan = show(capsys, TINY)["plan"]
    assert (plan["config"]["backend"], plan["launch"]) == ("embedded", "torchrun")
    assert list(plan["services"]) == ["judge"]


def test_default_compiles_with_nothing_in_the_store(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["steps", "run", *DEFAULT.split(), "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "run     rl/rlhf (default): prompts is missing; its content decides" in text
    assert "MISSING, nothing fills it; give -i prompts=REF or data.train.data_path=PATH" in text
    assert re.search(r"note        node 0    GPU 0-3 +policy", text)
    assert re.search(r"note        node 0    GPU 4-7 +judge", text)
    assert "  train_global_batch_size: 128  # one update: 16 prompts x 8 answers\n" in text
    assert "file      nemo_rl.yaml\n  # For NeMo-RL v0.6.0" in text
    assert "    num_prompts_per_step: 16\n" in text
    assert "/launch.sh\n#!/usr/bin/env bash\n" in text


def test_policy_and_judge_are_named_by_the_environment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = show(capsys, DEFAULT)["yaml"]
    assert values["policy"]["model_name"] == "meta-llama/Llama-3.2-1B-Instruct"
    monkeypatch.setenv("RL_POLICY_MODEL", "mine/policy")
    monkeypatch.setenv("RL_REWARD_MODEL", "mine/judge")
    for line in (DEFAULT, "rl/rlhf -c tiny_nemo_rl"):
        values = show(capsys, line)["yaml"]
        assert values["policy"]["model_name"] == "mine/policy"
        server = "env.nemo_gym.genrm_model.responses_api_models.genrm_model.model"
        assert get_key(values, server) == "mine/judge"


def test_the_line_for_lepton(capsys: pytest.CaptureFixture[str]) -> None:
    run = show(capsys, LEPTON)
    assert run["provisional"]
    values, plan = run["yaml"], run["plan"]
    assert values["env"]["nemo_gym"]["genrm_model_name"] == "nvidia/Nemotron-Reward-Model"
    compare = "env.nemo_gym.genrm_compare_resources_server.resources_servers.genrm_compare"
    assert get_key(values, f"{compare}.num_rollouts_per_prompt") == 16
    assert values["policy"]["train_global_batch_size"] == 16 * 16
    assert (plan["executor"], plan["detached"], plan["launch"]) == ("lepton", False, "ray")
    assert plan["image"] == "nvcr.io/nvidia/nemo-rl:v0.6.0"
    body = json.loads(run["files"]["lepton.json"])
    assert body["spec"]["container"]["image"] == plan["image"]
    assert body["spec"]["completions"] == 1
    assert "ray start" not in run["files"]["launch.sh"]


def test_the_line_for_slurm(capsys: pytest.CaptureFixture[str]) -> None:
    run = show(capsys, SLURM)
    values, plan = run["yaml"], run["plan"]
    assert values["grpo"]["max_num_steps"] == 1000
    assert values["grpo"]["val_period"] == 25
    assert values["data"]["validation"]["data_path"] == "${oc.env:NEMOTRON_STYLE_VALIDATION_DATA}"
    assert values["cluster"] | {"gpus_per_node": 8, "num_nodes": 1} == values["cluster"]
    assert (plan["executor"], plan["detached"]) == ("slurm", True)
    assert (plan["resources"]["nodes"], plan["resources"]["gpus"]) == (2, 8)
    assert "#SBATCH --nodes=2\n" in run["files"]["job.sbatch"]
    assert "units=16 " in run["files"]["launch.sh"]
    for slot, name in (("prompts", "train"), ("validation", "val")):
        remark = run["inputs"][slot]["remark"]
        assert remark.startswith(f"/lustre/rlhf/{name}.jsonl: no such file or directory")
        assert "login node" in remark


def test_a_submission_without_its_prompts_is_refused_with_what_to_do(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["steps", "run", *DEFAULT.split()]) == 2
    assert "give -i prompts=REF or data.train.data_path=PATH" in capsys.readouterr().err
    assert main(["steps", "run", *SLURM.split()]) == 2
    assert "login node" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["env.toml"]


def test_prompts_that_can_be_read_here_are_sealed_by_their_content(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = [{"messages": [{"role": "user", "content": f"Hi {number}"}]} for number in range(16)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "train.jsonl").write_text(text)
    run = show(capsys, f"{DEFAULT} data.train.data_path={tmp_path}/train.jsonl")
    assert not run["provisional"]
    assert run["inputs"]["prompts"]["source"].startswith("sha256:")
    assert run["run_id"] == show(capsys, f"{DEFAULT} -i prompts=./train.jsonl")["run_id"]


def test_fewer_prompts_than_a_step_takes_are_refused_before_anything_is_launched(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "train.jsonl").write_text('{"messages": [{"role": "user", "content": "Hi"}]}\n')
    assert main(["steps", "run", *f"{DEFAULT} data.train.data_path=./train.jsonl".split()]) == 2
    assert "a step takes P 16 rows, and the rows are 1" in capsys.readouterr().err


def test_the_page_has_the_lines_as_they_are_typed() -> None:
    page = " ".join(PAGE.read_text().replace("\\\n", " ").split())
    for line in (TINY, f"{DEFAULT} --dry-run", f"{LEPTON} --dry-run", f"{SLURM} --dry-run"):
        assert f"nemotron-style steps run {line}" in page
