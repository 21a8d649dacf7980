"""What was given, in the names of one version: aliases, renames, and keys that decide nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemotron_style.runtime.config.model import flatten
from nemotron_style.runtime.errors import Problem
from nemotron_style.steps.rl.rlhf.nemo_rl.draft import ABSENT, Draft, find, merge, put, show
from nemotron_style.steps.rl.rlhf.nemo_rl.schema import (
    GYM,
    JUDGE,
    NULL_MEANS_ABSENT,
    keys_of,
    nemotron,
    versions_with,
)
from nemotron_style.steps.rl.rlhf.nemo_rl.version import Version

ALIASES = {
    f"{GYM}.genrm_compare": f"{GYM}.genrm_compare_resources_server",
    f"{GYM}.genrm_model.responses_api_models.vllm_model": JUDGE,
    f"{GYM}.genrm_model.vllm": f"{JUDGE}.vllm_serve_kwargs",
}
"""Names of Nemotron's documentation and configs: NeMo-Gym ignores or mistakes both."""

_CHECKPOINT = "policy.automodel_cfg.checkpoint"
_MEGATRON = "policy.megatron_cfg"
RENAMES = (
    (
        Version.HEAD,
        f"{_MEGATRON}.use_linear_ce_fusion_loss",
        f"{_MEGATRON}.use_fused_linear_logprobs",
    ),
    (
        Version.HEAD,
        f"{_MEGATRON}.linear_ce_fusion_chunk_size",
        f"{_MEGATRON}.fused_linear_logprobs_chunk_size",
    ),
    (Version.V0_8_0, "policy.dtensor_cfg", "policy.automodel_cfg"),
    (Version.V0_8_0, "data_plane.storage_capacity", "data_plane.simple.storage_capacity"),
    (Version.V0_8_0, "data_plane.num_storage_units", "data_plane.simple.num_storage_units"),
)
"""Since when, the old key and the new one. Either name is understood in every version."""
MOVED_AWAY = {
    "policy.dtensor_cfg._v2": "it is always the second one",
    "policy.automodel_cfg._v2": "it is always the second one",
    "checkpointing.model_save_format": f"it is {_CHECKPOINT}.model_save_format now",
    "checkpointing.save_consolidated": f"it is {_CHECKPOINT}.save_consolidated now",
}
"""Keys that v0.8.0 took away from backends that do not need them; Megatron does not."""

OURS = ("data.allow_train_as_validation", "data.default_agent_ref")
"""Keys that the job reads, and NeMo-RL does not know."""
NOT_HERE = {
    "data.normalized_data_dir": "the job keeps the rows that it makes beside its run",
    "run": "a profile says where a step runs, nemo_rl.image and nemo_rl.environment in what",
}
"""Keys of Nemotron's runner, and who decides instead."""


def adapt(draft: Draft) -> None:
    """Bring ``draft.given`` into the names of its version; what is dropped is told."""
    for other, name in ALIASES.items():
        _merge_alias(draft, other, name)
    _agree_on_judge(draft)
    for since, old, new in RENAMES:
        source, target = (old, new) if draft.version >= since else (new, old)
        _rename(draft, source, target)
    if draft.version < Version.HEAD:  # which reads both, and multiplies them
        _rename(draft, "grpo.val_num_generations_per_prompt", "data.validation.repeat")
    if draft.take("data.manifest_path") not in (ABSENT, None):
        what = "names files that lineage would not see"
        fix = "set data.train.data_path and data.validation.data_path"
        draft.problems.append(Problem(key="data.manifest_path", what=what, fix=fix))
    if find(draft.given, f"{_MEGATRON}.peft.enabled") is True:
        what = "not built: a checkpoint of NeMo-RL would hold adapters alone, in its own layout"
        fix = "train them with backend=embedded, which makes a checkpoint_lora that peft loads"
        key = f"{_MEGATRON}.peft.enabled"
        draft.problems.append(Problem(key=key, what=what, got="true", allowed="false", fix=fix))
    key = "checkpointing.pretrained_checkpoint"
    if draft.take(key) not in (ABSENT, None):
        what, fix = "starts as policy.pretrained_checkpoint does", "give the input 'model'"
        draft.problems.append(Problem(key=key, what=what, fix=fix))
    for key in OURS:
        draft.take(key)
    for key, why in NOT_HERE.items():
        if (value := draft.take(key)) not in (ABSENT, None, {}):
            draft.told.append(f"{key}={show(value)} is dropped: {why}")
    _drop_dead(draft)
    for key, value in flatten(draft.given).items():
        if value is None and key.startswith(NULL_MEANS_ABSENT):
            draft.take(key)


def _merge_alias(draft: Draft, other: str, name: str) -> None:
    """Put a table under its real name; two different values for one key are a problem."""
    renamed, table = draft.take(other), find(draft.given, name)
    if not isinstance(renamed, Mapping):
        return
    known = flatten(table) if isinstance(table, Mapping) else {}
    for key, value in flatten(renamed).items():
        if known.get(key, value) not in (None, value):
            draft.problems.append(_differ(f"{other}.{key}", value, f"{name}.{key}", known[key]))
    put(draft.given, name, merge(renamed, table if isinstance(table, Mapping) else {}))
    draft.told.append(f"{other} is {name}: NeMo-Gym knows the second alone")


def _differ(key: str, value: Any, other: str, known: Any) -> Problem:
    return Problem(
        key=key,
        what=f"is another name of {other}, and they differ",
        got=str(value),
        allowed=str(known),
        fix="give one of them",
    )


def _agree_on_judge(draft: Draft) -> None:
    """The judge's model stands in its server, and under the name that Gym's YAML refers to.

    The server's is what somebody says on the command line; the other one is a default of configs.
    """
    model = find(draft.given, f"{JUDGE}.model")
    if model not in (ABSENT, None):
        named = find(draft.given, f"{GYM}.genrm_model_name")
        if named not in (ABSENT, None, model):
            draft.told.append(f"{GYM}.genrm_model_name follows {JUDGE}.model: {model}, not {named}")
        put(draft.given, f"{GYM}.genrm_model_name", model)


def _rename(draft: Draft, source: str, target: str) -> None:
    value, there = find(draft.given, source), find(draft.given, target)
    if value is ABSENT:
        return
    draft.take(source)
    if isinstance(value, Mapping) and isinstance(there, Mapping):
        put(draft.given, target, merge(value, there))
    elif there not in (ABSENT, value):
        draft.problems.append(_differ(source, value, target, there))
    else:
        put(draft.given, target, value)
    draft.told.append(f"{source} is called {target} in NeMo-RL {draft.version}")


def _drop_dead(draft: Draft) -> None:
    """Take out what decides nothing and stands in Nemotron's configs, and tell it.

    The same in any other key is refused, see ``check``.
    """
    known, theirs = keys_of(draft.version), nemotron()
    for key in sorted(theirs.dropped):
        value, row = find(draft.given, key), known.get(key)
        if value is ABSENT or (row and not row.dead):
            continue
        if key == "grpo.normalize_rewards" and value is not None:
            put(draft.given, "grpo.adv_estimator.normalize_rewards", value)
        draft.take(key)
        known_dead = row or theirs.dead.get(key)
        why = known_dead.dead if known_dead else ""
        why = why or _known_elsewhere(key, draft)
        draft.told.append(f"{key}={show(value)} is dropped: {why}")
    for key, why in MOVED_AWAY.items() if draft.version >= Version.V0_8_0 else ():
        if (value := draft.take(key)) is not ABSENT:
            draft.told.append(f"{key}={show(value)} is dropped: {why}")


def _known_elsewhere(key: str, draft: Draft) -> str:
    others = versions_with(key)
    known = f", known to {', '.join(others)}" if others else ""
    return f"unknown to NeMo-RL {draft.version}{known}"
