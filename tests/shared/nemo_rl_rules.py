"""Small configurations that NeMo-RL takes at each version, and cases that break one rule each."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

from nemotron_style.steps.rl.rlhf.nemo_rl.rules.check import find_breaches
from nemotron_style.steps.rl.rlhf.nemo_rl.rules.facts import Facts, FileRows, RowFacts
from nemotron_style.steps.rl.rlhf.nemo_rl.rules.rule import rules_of
from nemotron_style.steps.rl.rlhf.nemo_rl.version import Version

REMOVED = object()
COMPARE = "env.nemo_gym.genrm_compare_resources_server.resources_servers.genrm_compare"
JUDGE = "env.nemo_gym.genrm_model.responses_api_models.genrm_model"
VLLM = "policy.generation.vllm_cfg"
MEGATRON = "policy.megatron_cfg"

# Four GPUs train a policy with TP 2, so DP is 2; the judge has the other four of the node.
MEGATRON_CFG = {
    "enabled": True,
    "tensor_model_parallel_size": 2,
    "pipeline_model_parallel_size": 1,
    "context_parallel_size": 1,
    "expert_tensor_parallel_size": 1,
    "expert_model_parallel_size": 1,
    "sequence_parallel": True,
    "pipeline_dtype": "bfloat16",
    "activation_checkpointing": True,
    "moe_router_dtype": "fp64",
    "moe_router_load_balancing_type": "none",
    "moe_router_bias_update_rate": 0.0,
    "moe_permute_fusion": True,
    "gradient_accumulation_fusion": False,
    "defer_fp32_logits": True,
    "optimizer": {
        "optimizer": "adam",
        "bf16": True,
        "fp16": False,
        "use_distributed_optimizer": True,
        "use_precision_aware_optimizer": True,
        "optimizer_cpu_offload": False,
        "optimizer_offload_fraction": 0.0,
    },
    "scheduler": {"lr_decay_iters": 100, "lr_warmup_iters": 10},
}
VALUES: dict[str, Any] = {
    "grpo": {
        "num_prompts_per_step": 4,
        "num_generations_per_prompt": 4,
        "max_num_epochs": 1,
        "max_num_steps": 100,
        "normalize_rewards": True,
        "val_period": 10,
        "val_at_start": False,
        "val_at_end": False,
        "max_val_samples": None,
        "val_batch_size": None,
        "seed": 42,
        "overlong_filtering": False,
        "use_dynamic_sampling": False,
        "batch_multiplier": 1,
        "seq_logprob_error_threshold": 2.0,
        "reward_shaping": {"enabled": False},
        "reward_scaling": {"enabled": False},
        "async_grpo": {"enabled": False},
        "adv_estimator": {
            "name": "grpo",
            "normalize_rewards": True,
            "use_leave_one_out_baseline": True,
        },
    },
    "loss_fn": {
        "reference_policy_kl_penalty": 1.0e-4,
        "reference_policy_kl_type": "k3",
        "ratio_clip_c": None,
        "use_importance_sampling_correction": True,
        "truncated_importance_sampling_type": "tis",
        "truncated_importance_sampling_ratio": 5.0,
        "truncated_importance_sampling_ratio_min": None,
        "sequence_level_importance_ratios": False,
        "token_level_loss": True,
        "force_on_policy_ratio": False,
        "use_kl_in_reward": False,
    },
    "policy": {
        "model_name": "org/policy",
        "train_global_batch_size": 16,
        "train_micro_batch_size": 1,
        "logprob_batch_size": 1,
        "max_total_sequence_length": 4096,
        "make_sequence_length_divisible_by": 2,
        "precision": "bfloat16",
        "logprob_chunk_size": None,
        "offload_optimizer_for_logprob": False,
        "megatron_cfg": MEGATRON_CFG,
        "dynamic_batching": {"enabled": False},
        "sequence_packing": {"enabled": True, "train_mb_tokens": 4096, "logprob_mb_tokens": 4096},
        "draft": {"enabled": False},
        "generation": {
            "backend": "vllm",
            "max_new_tokens": 1024,
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": None,
            "stop_token_ids": None,
            "stop_strings": None,
            "vllm_kwargs": {},
            "vllm_cfg": {
                "async_engine": True,
                "expose_http_server": True,
                "precision": "bfloat16",
                "kv_cache_dtype": "auto",
                "tensor_parallel_size": 1,
                "pipeline_parallel_size": 1,
                "expert_parallel_size": 1,
                "max_model_len": 4096,
                "enable_vllm_metrics_logger": True,
                "vllm_metrics_logger_interval": 0.5,
            },
            "colocated": {
                "enabled": True,
                "resources": {"gpus_per_node": None, "num_nodes": None},
            },
        },
    },
    "data": {
        "shuffle": False,
        "use_multiple_dataloader": False,
        "train": {"data_path": "/data/train.jsonl"},
        "validation": {"data_path": "/data/val.jsonl"},
    },
    "env": {
        "should_use_nemo_gym": True,
        "nemo_gym": {
            "config_paths": [
                "responses_api_models/vllm_model/configs/vllm_model_for_training.yaml",
                "resources_servers/genrm_compare/configs/genrm_compare.yaml",
            ],
            "genrm_model_name": "org/judge",
            "policy_model_reasoning_off": {
                "responses_api_models": {"vllm_model": {"entrypoint": "app.py"}}
            },
            "genrm_compare_resources_server": {
                "resources_servers": {
                    "genrm_compare": {
                        "genrm_model_server": {"name": "genrm_model"},
                        "num_rollouts_per_prompt": 4,
                        "comparison_strategy": "circular",
                        "aggregator_method": "simple_tiebreaker",
                        "genrm_responses_create_params": {"max_output_tokens": 4096},
                    }
                }
            },
            "genrm_model": {
                "responses_api_models": {
                    "genrm_model": {
                        "entrypoint": "app.py",
                        "model": "org/judge",
                        "vllm_serve_env_vars": {"VLLM_RAY_DP_PACK_STRATEGY": "strict"},
                        "vllm_serve_kwargs": {
                            "data_parallel_size": 1,
                            "tensor_parallel_size": 4,
                            "pipeline_parallel_size": 1,
                            "max_model_len": 8192,
                        },
                    }
                }
            },
        },
    },
    "checkpointing": {
        "enabled": True,
        "checkpoint_dir": "/run/checkpoints",
        "metric_name": "val:total_reward/mean",
        "higher_is_better": True,
        "keep_top_k": 3,
        "save_period": 20,
        "save_optimizer": True,
        "checkpoint_must_save_by": None,
        "model_save_format": None,
    },
    "logger": {"wandb_enabled": False, "tensorboard_enabled": True, "tensorboard": {}},
    "cluster": {"gpus_per_node": 4, "num_nodes": 1},
}
FACTS = Facts(
    Version.HEAD,
    executor="local",
    nodes=1,
    gpus_per_node=8,
    knows_all_variables=True,
    rows=RowFacts(FileRows("/data/train.jsonl", 8), FileRows("/data/val.jsonl", 2)),
)


def change(values: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with other ones under dotted keys, in place."""
    for key, value in changes.items():
        *sections, name = key.split(".")
        table = values
        for section in sections:
            table = table.setdefault(section, {})
        if value is REMOVED:
            del table[name]
        else:
            table[name] = value
    return values


def valid_values(version: Version, *, gym: bool = True) -> dict[str, Any]:
    """A complete configuration as far as rules read it, for Megatron."""
    changes: dict[str, Any] = {}
    if version < Version.HEAD:
        changes["data.validation.repeat"] = 4
    else:
        changes["grpo.val_num_generations_per_prompt"] = 4
        names = {"temperature": 1.0, "top_p": 1.0, "top_k": None}
        changes |= {f"policy.generation.val_{name}": value for name, value in names.items()}
    if version >= Version.V0_7_0:
        changes[f"{MEGATRON}.use_fused_weighted_squared_relu"] = False
        changes |= {"grpo.advantage_clip_low": -50.0, "grpo.advantage_clip_high": 50.0}
    if version < Version.V0_8_0:
        changes["policy.dtensor_cfg"] = {"enabled": False, "_v2": True}
    if not gym:
        changes |= {"env": {"should_use_nemo_gym": False}, "cluster.gpus_per_node": 8}
        changes["checkpointing.metric_name"] = "val:accuracy"
    return change(copy.deepcopy(VALUES), changes)


@dataclass(frozen=True)
class Case:
    """``changes`` (by version, where it is a function) break ``rule``, and at most ``also``.

    ``words`` stand in the message, and so does ``key`` unless its name differs by version.
    ``gym`` false starts from a configuration without NeMo-Gym.
    """

    rule: str
    changes: Mapping[str, Any] | Callable[[Version], Mapping[str, Any]]
    key: str
    words: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    also: frozenset[str] = frozenset()
    gym: bool = True

    def broken_at(self, version: Version) -> tuple[dict[str, Any], Facts]:
        changes = self.changes(version) if callable(self.changes) else self.changes
        values = change(valid_values(version, gym=self.gym), changes)
        return values, replace(FACTS, **{"version": version, **self.facts})


def check_case(case: Case, subject: ModuleType) -> None:
    """The rule alone is broken at each version that has it, and not at the others."""
    rule = next(rule for rule in rules_of(subject) if rule.name == case.rule)
    for version in Version:
        values, facts = case.broken_at(version)
        breaches = [
            b for advice in (False, True) for b in find_breaches(values, facts, advice=advice)
        ]
        names = {broken.name for broken, _ in breaches}
        if not rule.holds_at(version):
            assert case.rule not in names, version
            continue
        found = [problem for broken, problem in breaches if broken is rule]
        assert found, f"{case.rule} is not found at {version}; found: {names}"
        assert names - {case.rule} <= case.also, f"{version}: {[str(p) for _, p in breaches]}"
        assert not case.key or case.key in {problem.key for problem in found}, [
            str(problem) for problem in found
        ]
        text = "\n".join(map(str, found))
        for word in case.words:
            assert word in text, f"{word!r} is not in {text}"


def uncovered(cases: list[Case], subject: ModuleType) -> set[str]:
    """Rules without a case, and cases without a rule."""
    return {case.rule for case in cases} ^ {rule.name for rule in rules_of(subject)}
