"""NeMo-RL's own configurations pass the rules of their version, but for defects that they have."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from nemotron_style.steps.rl.rlhf.nemo_rl.rules.check import find_breaches
from nemotron_style.steps.rl.rlhf.nemo_rl.rules.facts import Facts
from nemotron_style.steps.rl.rlhf.nemo_rl.version import Version

SOURCE = os.environ.get("NEMO_RL_SOURCE")
RESOLVERS = {
    "mul": lambda first, second: first * second,
    "add": lambda first, second: first + second,
    "div": lambda first, second: first // second,
    "max": max,
}
# Its tests of these set the variable.
KNOWN = frozenset({"NRL_IGNORE_TP_ACCURACY_CHECK"})
DEFECTS = {
    # Validation sends two responses (or one) to a prompt, and the judge waits for all of a group.
    "gym_judge.validation_cohort_fills": {
        "stage3_rlhf",
        "stage3_rlhf_convergence_28node_h100",
        "grpo-qwen3-1.7b-2n8g-megatron-super-rlhf",
        *("ifbench_teacher", "rlhf_teacher", "student_rlvr1", "student_rlvr2"),
    },
    "batches.batch_multiplier": {"prorlv2_1_moe", "prorlv2_1_moe.v2"},
    # A launch script gives the judge, and other nodes.
    "gym_judge.judge_is_named": {"rlhf_teacher"},
    "batches.gpus_fill_models": {"reasoning_teacher", "student_rlvr1", "student_rlvr2"},
    "batches.gpus_fill_experts": {"reasoning_teacher", "student_rlvr1", "student_rlvr2"},
    # Padded to TP, where context parallelism asks for more.
    "batches.padding_multiple": {"grpo_nanov3", "grpo_qwen3_30ba3b_instruct"},
    # 65,536 tokens a sequence, and room for 49,152.
    "batches.sequences_fit_bins": {
        f"grpo-nemotron3-super-120BA12B-16n4g-megatron-qa-{name}-300step"
        for name in ("bf16", "nvfp4-w4a16-real", "nvfp4-w4a4-real")
    },
    "megatron.chunked_logprobs": {"vlm_grpo-nemotron-omni-30ba3b-mmpr-4n8g-megatron-tp8ep16.v1"},
    # The script for NeMo-Gym drops them.
    "gym_script.no_stop": {"grpo_qwen3_30b_async_swe_trtllm"},
}


@pytest.mark.skipif(not SOURCE, reason="NEMO_RL_SOURCE names no folder of NeMo-RL's sources")
@pytest.mark.parametrize("version", ["v0.6.0", "v0.7.0", "head"])
def test_only_real_defects_are_found_in_nemo_rl_s_examples(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = Path(str(SOURCE)) / version / "examples"
    if not examples.is_dir():
        pytest.skip(f"{examples} is missing")
    for name in ("HF_HOME", "PERSISTENT_CACHE", "WANDB_PROJECT"):
        monkeypatch.setenv(name, "/x")
    register = getattr(OmegaConf, "register_resolver", OmegaConf.register_new_resolver)
    for name, function in RESOLVERS.items():
        if not OmegaConf.has_resolver(name):
            register(name, function)
    seen, wrong = 0, []
    for path in sorted(examples.rglob("*.yaml")):
        values = read(path)
        if values is None:
            continue
        seen += 1
        facts = Facts(Version(version), variables=KNOWN)
        breaches = find_breaches(values, facts, advice=False)
        for rule, problem in breaches:
            if path.stem not in DEFECTS.get(rule.name, ()):
                wrong.append(f"{path.name}: {rule.name}: {problem}")
    assert seen > 50
    assert wrong == []


def read(path: Path) -> dict[str, Any] | None:
    """A configuration of GRPO with what it builds on; None for other files and other scripts."""
    if "single" in path.stem or path.stem == "grpo_multiple_datasets":
        return None  # another script, whose async_grpo is null; a list in place of a table
    config = load(path)
    if not {"grpo", "loss_fn", "policy"} <= set(map(str, config)):
        return None
    values: Any = OmegaConf.to_container(config, resolve=True)
    return values


def load(path: Path) -> DictConfig:
    config: Any = OmegaConf.load(path)
    if not isinstance(config, DictConfig):
        return OmegaConf.create({})
    parents = config.pop("defaults", None) or []
    merged: Any = OmegaConf.create({})
    for parent in [parents] if isinstance(parents, str) else parents:
        merged = OmegaConf.merge(merged, load(path.parent / parent))
    whole: Any = OmegaConf.merge(merged, config)
    return whole
