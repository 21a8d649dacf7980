"""Write the key tables of ``steps/rl/rlhf/nemo_rl/tables`` from facts about NeMo-RL and NeMo-Gym.

usage: python tools/nemo_rl_tables.py FACTS

FACTS holds ``grpo_schema.json`` and ``gym_schema.json``: what was found in the sources of the
tags, key by key. They are not part of the project; the tables are, one key a line.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TABLES = ROOT / "src/steps/rl/rlhf/nemo_rl/tables"
VERSIONS = {"v0.6.0": "v0.6.0", "v0.7.0": "v0.7.0", "head": "HEAD"}
GYMS = {"v0.6.0": "1a4912e", "v0.7.0": "v0.4.0", "head": "HEAD", "v0.8.0": "0.7.0"}
"""The NeMo-Gym that each carries; that of v0.8.0 is assumed."""

Entry = dict[str, Any]

OTHER_ENGINES = ("sglang_cfg", "trtllm_cfg", "dynamo_cfg", "mcore_generation_config", "refit_cfg")
OPEN = {
    *(f"policy.generation.{name}" for name in OTHER_ENGINES),
    "policy.generation.vllm_kwargs",
    "policy.optimizer.kwargs",
    "policy.scheduler",
    "on_policy_distillation",
    "async_rl",
    "token_capture",
    "data_plane.observability",
}
"""Blocks whose keys are not listed: those of vLLM and torch, and those this step never uses."""

TYPES = {
    # v0.6.0 declares whole numbers, and its Gym script demands null.
    "grpo.max_val_samples": "int|null",
    "grpo.val_batch_size": "int|null",
    "policy.scheduler": "list|dict|null",
    "policy.tokenizer.chat_template": "str|null",
    "data.train": "table",
    "data.validation": "table|null",
    "data.default": "table|null",
    "policy.megatron_cfg.peft.lora_dtype": "str|null",
    "env": "table",
    "env.should_use_nemo_gym": "bool",
    "env.should_log_nemo_gym_responses": "bool",
    "env.nemo_gym.is_trajectory_collection": "bool",
    "env.nemo_gym.rollout_max_attempts_to_avoid_lp_nan": "int",
    **{f"data.{part}.repeat": "int" for part in ("default", "train", "validation")},
}
KNOWN_INSIDE = {
    "http_server_serving_chat_kwargs": {
        "enable_auto_tools": "bool",
        "tool_parser": "str|null",
        "reasoning_parser": "str|null",
    },
    "genrm_model_server": {"type": "str", "name": "str"},
    "genrm_responses_create_params": {
        "input": "list",
        "max_output_tokens": "int",
        "temperature": "float",
        "top_p": "float",
    },
    "vllm_serve_env_vars": {"VLLM_RAY_DP_PACK_STRATEGY": "str"},
    "vllm_serve_kwargs": {
        "data_parallel_size": "int",
        "tensor_parallel_size": "int",
        "pipeline_parallel_size": "int",
        "gpu_memory_utilization": "float",
        "max_model_len": "int",
        "max_num_seqs": "int",
        "trust_remote_code": "bool",
        "enforce_eager": "bool",
        "reasoning_parser": "str",
        "compilation_config": "dict",
    },
}
"""Keys that people set inside tables that take any."""
COUNTS = (
    "grpo.num_prompts_per_step",
    "grpo.num_generations_per_prompt",
    "grpo.val_num_generations_per_prompt",
    "grpo.max_num_steps",
    "grpo.max_num_epochs",
    "policy.train_global_batch_size",
    "policy.train_micro_batch_size",
    "policy.logprob_batch_size",
    "policy.max_total_sequence_length",
    "policy.make_sequence_length_divisible_by",
    "policy.generation.max_new_tokens",
    "policy.megatron_cfg.tensor_model_parallel_size",
    "policy.megatron_cfg.pipeline_model_parallel_size",
    "policy.megatron_cfg.context_parallel_size",
    "policy.generation.vllm_cfg.tensor_parallel_size",
    "policy.generation.vllm_cfg.pipeline_parallel_size",
    "policy.generation.vllm_cfg.expert_parallel_size",
    "checkpointing.save_period",
    "cluster.gpus_per_node",
    "cluster.num_nodes",
)
LIMITS = {
    **{key: {"min": 1} for key in COUNTS},
    "grpo.val_period": {"min": 0},
    "policy.generation.temperature": {"min": 0},
    "policy.generation.top_p": {"above": 0, "max": 1},
    "policy.generation.vllm_cfg.gpu_memory_utilization": {"above": 0, "max": 1},
    "policy.megatron_cfg.optimizer.optimizer_offload_fraction": {"min": 0, "max": 1},
    "loss_fn.reference_policy_kl_penalty": {"min": 0},
    "loss_fn.ratio_clip_min": {"min": 0},
    "loss_fn.ratio_clip_max": {"min": 0},
    "loss_fn.ratio_clip_c": {"above": 1},
}
DEAD = {
    "policy.generation_batch_size": "no engine that generates takes a batch size",
    "refit_buffer_size_gb": "weights are handed over without a size of buffers",
    "data.add_": "prompts of GRPO are not put together by it",
    "grpo.normalize_rewards": "grpo.adv_estimator.normalize_rewards alone is read",
    "logger.tensorboard.log_dir": "its files lie under logger.log_dir, in a folder a run",
    "checkpointing.is_async": "policy.megatron_cfg.checkpoint.async_save decides, where it exists",
    "enable_return_routed_experts": "the one in policy.generation.vllm_kwargs is read",
    "grpo.adv_estimator.": "an estimator of PPO reads it, and GRPO has none",
}
"""Why nothing reads a key, by a part of its name."""
BEST_AT_K = "no release reads it: it belongs to a branch that was not merged"
RUNNER = "only Nemotron's own runner reads it"
NEMOTRON = {
    "env.genrm_agent_names": {"type": "list[str]", "dead": RUNNER},
    "env.genrm_compare_server_name": {"type": "str", "dead": RUNNER},
    "env.use_genrm_compare": {"type": "bool", "dead": RUNNER},
    "grpo.best_at_k_k": {"type": "int", "dead": BEST_AT_K},
    "grpo.best_at_k_m": {"type": "int", "dead": BEST_AT_K},
    "grpo.combined_training_best_at_k_weight": {"type": "float", "dead": BEST_AT_K},
    "grpo.combined_training_pass_at_1_weight": {"type": "float", "dead": BEST_AT_K},
    "grpo.combined_training_weight_mode": {"type": "str", "dead": BEST_AT_K},
    "grpo.dynamic_sampling_oversample_ratio": {"type": "float", "dead": BEST_AT_K},
    "grpo.num_val_generations_per_prompt": {
        "type": "int",
        "dead": "the groups of validation have the size that the judge waits for",
    },
    "grpo.penalize_invalid_tool_call": {
        "type": "bool",
        "dead": "grpo.invalid_tool_call_advantage alone decides",
    },
    "grpo.penalize_malformed_thinking": {
        "type": "bool",
        "dead": "grpo.malformed_thinking_advantage alone decides",
    },
    "grpo.use_best_at_k": {"type": "bool", "dead": BEST_AT_K},
    "grpo.use_combined_training": {"type": "bool", "dead": BEST_AT_K},
}
STYLE_PENALTY = (
    "env.nemo_gym.genrm_compare_resources_server.resources_servers.genrm_compare"
    ".group_style_penalty_coeff"
)
REWARD_MODEL: dict[str, Entry] = {
    "": {"type": "table|null"},
    "model_name": {"type": "str|null", "need": "code"},
    "tokenizer": {"type": "table", "need": "code"},
    "tokenizer.name": {"type": "str", "need": "code"},
    "tokenizer.chat_template": {"type": "str|null"},
    "tokenizer.chat_template_kwargs": {"type": "dict|null"},
    "precision": {"type": "str", "need": "code", "allowed": ["bfloat16", "float16", "float32"]},
    "batch_size": {"type": "int", "need": "code", "min": 1},
    "checkpoint_path": {"type": "str|null"},
    "offload_optimizer_for_logprob": {"type": "bool", "need": "code"},
    "resources": {"type": "table", "need": "code"},
    "resources.gpus_per_node": {"type": "int", "need": "code", "min": 1},
    "resources.num_nodes": {"type": "int", "need": "code", "min": 1},
    "dtensor_cfg": {"type": "table", "need": "code"},
    "dtensor_cfg._v2": {"type": "bool"},
    "dtensor_cfg.enabled": {"type": "bool", "need": "code", "allowed": [True]},
    "dtensor_cfg.sequence_parallel": {"type": "bool", "need": "code"},
    "dtensor_cfg.tensor_parallel_size": {"type": "int", "need": "code", "min": 1},
    "dtensor_cfg.context_parallel_size": {"type": "int", "need": "code", "min": 1},
    "dtensor_cfg.custom_parallel_plan": {"type": "str|null"},
    "dtensor_cfg.cpu_offload": {"type": "bool", "need": "code", "allowed": [False]},
    "dtensor_cfg.activation_checkpointing": {"type": "bool", "need": "code", "allowed": [False]},
    "reward_model_cfg": {"type": "table", "need": "code"},
    "reward_model_cfg.enabled": {"type": "bool", "need": "code", "allowed": [True]},
    "reward_model_cfg.reward_model_type": {
        "type": "str",
        "need": "code",
        "allowed": ["bradley_terry"],
    },
    "dynamic_batching": {"type": "table", "need": "code"},
    "dynamic_batching.enabled": {"type": "bool", "need": "code", "allowed": [False]},
    "sequence_packing": {"type": "table", "need": "code"},
    "sequence_packing.enabled": {"type": "bool", "need": "code", "allowed": [False]},
    "max_grad_norm": {"type": "null", "need": "code"},
}
"""NeMo-RL's own environment of a reward model: a table of ``env`` without a class of its own.

What one value alone is allowed for is asserted by its constructor; all three tags agree.
"""
NOT_FOR_USERS = (
    *("policy_base_url", "policy_api_key", "policy_model_name"),  # NeMo-RL writes these
    *("ray_head_node_address", "head_server", "hf_token", "dry_run", "json", "query", "verbose"),
)
FLAGS = ("skip_venv_if_present", "use_absolute_ip", "uv_pip_set_python", "pip_install_verbose")
PLAIN = {"str": "str", "int": "int", "float": "float", "bool": "bool", "any": "any", "null": "null"}


def plain_type(text: str | None, from_yaml: list[str] | None, has_children: bool) -> str:
    """A type of the facts in the words of the tables: ``int|null``, ``list[str]``, ``table``."""
    if not text:
        only = from_yaml[0] if from_yaml and len(from_yaml) == 1 else "any"
        return "table" if has_children else {**PLAIN, "list": "list"}.get(only, "any")
    kinds = []
    for part in re.sub(r"(dict|list)\[(?!str\]|int\]|float\]).*\]", r"\1", text).split(" | "):
        kind = PLAIN.get(part) or re.sub(r"^dict.*", "dict", part)
        if part.startswith("object:"):
            kind = "table" if has_children else "dict"
        elif part.startswith("enum") or part in ("PathLike", "Callable"):
            kind = "str"
        kinds.append(kind)
    return "|".join(dict.fromkeys(kinds))


def is_open(key: str) -> bool:
    above = any(key.startswith(f"{block}.") for block in (*OPEN, "env.reward_model"))
    return above or key.rpartition(".")[2] in NOT_FOR_USERS


def read_version(facts: dict[str, Any], name: str) -> dict[str, Entry]:
    """The keys of a version, by dotted name."""
    present = {key for key, by in facts.items() if name in by and not by[name].get("absent")}
    dicts = {key for key in present if str(facts[key][name].get("type")).startswith("dict")}
    dicts -= {"env", "env.nemo_gym"}
    keep = sorted(
        key
        for key in present
        if not is_open(key) and not any(key.startswith(f"{above}.") for above in dicts)
    )
    table = open_up({key: read_entry(key, facts[key][name], keep) for key in keep})
    for key in keep:  # a block that is passed on as a whole, to a constructor that takes no others
        if (block := facts[key][name].get("passed_on_whole")) in table and block != key:
            table[block]["closed"] = True
    return table


def open_up(table: dict[str, Entry]) -> dict[str, Entry]:
    """``table`` with what is known inside of tables that take any key."""
    opened: dict[str, Entry] = {}
    for key, entry in table.items():
        inside = KNOWN_INSIDE.get(key.rpartition(".")[2], {})
        opened[key] = entry | ({"type": "table", "open": True} if inside else {})
        opened |= {f"{key}.{name}": {"type": kind} for name, kind in inside.items()}
    return opened


def read_entry(key: str, fact: dict[str, Any], keys: list[str]) -> Entry:
    has_children = any(other.startswith(f"{key}.") for other in keys)
    kind = plain_type(fact.get("type"), fact.get("type_from_yaml"), has_children)
    entry: Entry = {"type": TYPES.get(key) or ("dict|null" if key in OPEN else kind)}
    if fact.get("required") in ("type", "indexed") and key not in OPEN:
        entry["need"] = {"type": "type", "indexed": "code"}[fact["required"]]
    if fact.get("dead") and fact.get("required_by_type"):
        entry["need"] = "type"  # nothing reads it, and yet the class demands it
    default = fact.get("code_default")
    if "code_default" in fact and not str(default).startswith("<"):
        entry["default"] = default
    enum = re.fullmatch(r"enum\((.*)\)", fact.get("type") or "")
    allowed = fact.get("allowed") or (re.findall(r'"([^"]*)"', enum[1]) if enum else [])
    if allowed and "str |" not in str(fact.get("type")):
        entry["allowed"] = [one for one in allowed if one is not None]
    if None in (allowed or []) and "null" not in entry["type"]:
        entry["type"] += "|null"
    if fact.get("dead"):
        entry["dead"] = next((why for part, why in DEAD.items() if part in key), "no code reads it")
    return entry | LIMITS.get(key, {})


def read_gym(servers: dict[str, Any], pin: str) -> dict[str, dict[str, Entry]]:
    """The keys of each kind of NeMo-Gym server."""
    vllm = servers["vllm_model"]["VLLMModelConfig"]
    local = servers["local_vllm_model (extends vllm_model)"]["LocalVLLMModelConfig"]
    genrm = servers["genrm_model (extends local_vllm_model)"]["GenRMModelConfig"]
    compare = servers["genrm_compare"]["GenRMCompareConfig"]
    agent = servers["simple_agent"]["SimpleAgentConfig"]
    kinds = {
        "genrm_compare": compare,
        "genrm_model": vllm | local | genrm,
        "vllm_model": vllm,
        "simple_agent": agent,
    }
    every = {
        "entrypoint": {"type": "str", "need": "code"},
        **{name: {"type": "str"} for name in ("host", "domain", "description", "value")},
        **{name: {"type": "int"} for name in ("port", "num_workers")},
        "verified": {"type": "bool"},
        "datasets": {"type": "list"},
        "debug": {"type": "bool"},
    }
    return {
        kind: every
        | open_up(
            {key: gym_entry(by[pin]) for key, by in sorted(keys.items()) if is_there(key, by, pin)}
        )
        for kind, keys in kinds.items()
    }


def is_there(key: str, by: dict[str, Any], pin: str) -> bool:
    return pin in by and not key.isupper()  # a constant of the class is no key


def gym_entry(fact: dict[str, Any]) -> Entry:
    text = fact["type"]
    words = {"Dict": "dict", "List": "list", "Optional": "null"}
    kinds = [new for old, new in words.items() if old in text] + [
        name for name in ("str", "int", "float", "bool") if re.search(rf"\b{name}\b", text)
    ]
    if "dict" in kinds:
        kinds = [kind for kind in kinds if kind in ("dict", "null")]
    if text.endswith(("Ref", "NonStreaming", "Ref | None")):
        kinds = ["dict"]
    entry: Entry = {"type": "|".join(sorted(set(kinds))) or "str"}
    if fact["required"]:
        entry["need"] = "code"
    if "Literal" in text:
        entry["allowed"] = re.findall(r"'([^']*)'", text)
    return entry


def read_newest(facts: dict[str, Any], head: dict[str, Entry]) -> dict[str, Any]:
    """v0.8.0 as what differs from head: keys gone, keys new, and keys that were seen there."""
    rows = {key: by["v0.8.0"] for key, by in facts.items() if "v0.8.0" in by}
    gone = fold([key for key in head if moved(rows.get(key, {}))], head)
    new = {}
    for key, row in sorted(rows.items()):
        if key in head or is_open(key) or row.get("absent") or key.startswith("policy.dtensor_cfg"):
            continue
        if "same_as_key" in row:
            new[key] = head.get(row["same_as_key"].split(" @")[0])
        elif "type" in row or key in OPEN or row.get("basis", "").startswith("read"):
            entry = read_entry(key, row, list(rows))
            new[key] = entry if row.get("type") or key in OPEN else {"type": "any"}
    seen = [key for key in head if rows.get(key, {}).get("basis", "").startswith("read")]
    seen = fold([key for key in seen if not moved(rows[key])], head)
    for key in list(new):
        above = key.rpartition(".")[0]
        if above and above not in head and above not in new:
            new[above] = {"type": "table"}
    new = {key: row for key, row in sorted(new.items()) if row}
    return {"gone": gone, "new": new, "seen": seen}


def fold(keys: list[str], table: dict[str, Entry]) -> list[str]:
    """``keys`` with ``block.*`` for a block whose keys are all there."""
    inside = {key: [k for k in table if k == key or k.startswith(f"{key}.")] for key in table}
    whole = {key for key in keys if len(inside[key]) > 1 and set(inside[key]) <= set(keys)}
    top = [key for key in whole if not any(key.startswith(f"{other}.") for other in whole)]
    covered = {below for key in top for below in inside[key]}
    return sorted([*(f"{key}.*" for key in top), *(key for key in keys if key not in covered)])


def moved(row: dict[str, Any]) -> bool:
    return bool(row.get("absent") or row.get("renamed_to") or row.get("moved_to"))


def write_table(path: Path, table: dict[str, Any]) -> None:
    """JSON with one key a line, so that a difference reads well."""
    parts = []
    for name, value in table.items():
        if isinstance(value, dict) and value:
            rows = ",\n".join(f"  {json.dumps(key)}: {dump(row)}" for key, row in value.items())
            parts.append(f" {json.dumps(name)}: {{\n{rows}\n }}")
        elif isinstance(value, list):
            rows = ",\n".join(f"  {json.dumps(row)}" for row in value)
            parts.append(f" {json.dumps(name)}: [\n{rows}\n ]")
        else:
            parts.append(f" {json.dumps(name)}: {json.dumps(value)}")
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


def dump(row: Any) -> str:
    return json.dumps(row, separators=(", ", ": "), ensure_ascii=False)


def read_gym_globals(servers: dict[str, Any], version: str) -> dict[str, Entry]:
    """The keys beside the servers that NeMo-Gym itself reads."""
    known = servers["agents and rows"]["reserved global keys"]
    names = [*known["1a4912e"], *(known["HEAD adds"] if version in ("head", "v0.8.0") else [])]
    names += known["0.7.0 adds"] if version == "v0.8.0" else []
    kept = [name for name in names if name not in NOT_FOR_USERS]
    below = {name: {"type": gym_global_type(name)} for name in kept}
    below["genrm_model_name"] = {"type": "str"}
    return {f"env.nemo_gym.{name}": row for name, row in sorted(below.items())}


def reward_model_keys() -> dict[str, Entry]:
    return {f"env.reward_model.{name}".rstrip("."): row for name, row in REWARD_MODEL.items()}


def gym_global_type(name: str) -> str:
    if name.startswith("port_range") or name.endswith("_seconds"):
        return "int"
    if name in ("config_paths", "head_server_deps", "disallowed_ports"):
        return "list"
    return "bool" if name in FLAGS else "any"


def main(facts: Path) -> None:
    keys = json.loads((facts / "grpo_schema.json").read_text())["keys"]
    servers = json.loads((facts / "gym_schema.json").read_text())["servers"]
    tables = [
        read_gym_globals(servers, version) | reward_model_keys() | read_version(keys, name)
        for version, name in VERSIONS.items()
    ]
    for version, table in zip(VERSIONS, tables, strict=True):
        gym = gym_lines(read_gym(servers, GYMS[version]))
        write_table(TABLES / f"{version}.json", {"keys": dict(sorted(table.items())), "gym": gym})
    write_table(TABLES / "nemotron.json", read_nemotron(tables))
    newest = read_newest(keys, tables[-1])
    gym = gym_lines(read_gym(servers, GYMS["v0.8.0"]))
    before = gym_lines(read_gym(servers, GYMS["head"]))
    newest["new"] |= {
        key: row
        for key, row in read_gym_globals(servers, "v0.8.0").items()
        if key not in tables[-1]
    }
    newest["gym"] = {key: row for key, row in gym.items() if before.get(key) != row}
    write_table(TABLES / "v0.8.0.json", {"differs_from": "head", **newest})


def read_nemotron(tables: list[dict[str, Entry]]) -> dict[str, Any]:
    """The keys of Nemotron's rlhf configs that decide nothing in some version of NeMo-RL."""
    keys = (ROOT / "tests/golden/rlhf_keys.txt").read_text().split()
    carried = [
        key
        for key in keys
        if key.partition(".")[0] not in ("run", "data")
        and key not in NEMOTRON
        and "nemo_gym.g" not in key
        and any(key in table for table in tables)
        and any(key not in table or table[key].get("dead") for table in tables)
    ]
    return {"dead": NEMOTRON, "dropped": [*carried, STYLE_PENALTY]}


def gym_lines(kinds: dict[str, dict[str, Entry]]) -> dict[str, Entry]:
    return {f"{kind}.{key}": row for kind, keys in kinds.items() for key, row in keys.items()}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
