"""``config.json`` of a Llama and a model's sizes: the same facts, and what has no counterpart.

Hugging Face's file can ask for things that the model here does not do. Each of them would load
without complaint and compute something else, so each is refused, by its key.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nemotron_style.runtime.errors import InputError, Problem, raise_all
from nemotron_style.steps.blocks.settings.hub_code import find_code_keys
from nemotron_style.steps.blocks.settings.json_model import validation_problems
from nemotron_style.steps.blocks.settings.model_config import ModelConfig

CONFIG_FILE = "config.json"
DEFAULT_THETA = 10000.0

# Our name, Hugging Face's, and what an absent key means to Hugging Face (None: it must be there).
_SIZES = (
    ("num_layers", "num_hidden_layers", None),
    ("hidden_size", "hidden_size", None),
    ("ffn_hidden_size", "intermediate_size", None),
    ("num_attention_heads", "num_attention_heads", None),
    ("vocab_size", "vocab_size", None),
    ("max_sequence_length", "max_position_embeddings", 2048),
    ("norm_epsilon", "rms_norm_eps", 1e-6),
    ("tie_embeddings", "tie_word_embeddings", False),
)

# Key, the values that mean what the model does, what another value asks for, what is allowed.
_OFF = (None, False, "", [], {})
_RULES: tuple[tuple[str, tuple[Any, ...], str, str], ...] = (
    ("model_type", ("llama",), "another architecture", "llama"),
    (
        "architectures",
        (None, ["LlamaForCausalLM"]),
        "another architecture",
        "LlamaForCausalLM",
    ),
    ("hidden_act", (None, "silu", "swish"), "another activation in the gated MLP", "silu"),
    ("attention_bias", _OFF, "biases in attention", "false"),
    ("mlp_bias", _OFF, "biases in the MLP", "false"),
    ("sliding_window", _OFF, "attention over a window", "null"),
    ("num_local_experts", _OFF, "a mixture of experts", "none"),
    ("num_experts", _OFF, "a mixture of experts", "none"),
    ("quantization_config", _OFF, "quantised weights", "float32, float16 or bfloat16"),
    ("partial_rotary_factor", (None, 1), "rotary positions on a part of each head", "1.0"),
)
# What says which numbers a Llama computes, besides its sizes. Nothing else of an untrusted
# config.json is handed to another library.
_MEANING = (
    *("num_key_value_heads", "head_dim", "hidden_act", "attention_bias", "mlp_bias"),
    *("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor", "pretraining_tp"),
)
_ROPE_KEYS = {"rope_theta", "rope_type", "type", "partial_rotary_factor"}


def build_settings(
    config: ModelConfig, *, dtype: str, token_ids: Mapping[str, Any]
) -> dict[str, Any]:
    """The ``config.json`` of a model of these sizes.

    ``dtype`` is that of the weights; ``token_ids`` holds ``bos_token_id`` and the like. The keys
    are those that every version of transformers since 4.31 reads.
    """
    if config.switched:
        what = "config.json is not written for models with these switches yet"
        raise InputError(Problem(what=what, got=", ".join(config.switched)))
    ours = config.model_dump()
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{theirs: ours[name] for name, theirs, _ in _SIZES},
        "num_key_value_heads": config.num_query_groups,
        "head_dim": config.head_size,
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": dtype,
        **token_ids,
    }


def read_settings(path: Path) -> dict[str, Any]:
    """The ``config.json`` of a folder. Raises InputError when there is none to read."""
    file = path / CONFIG_FILE
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        what = "is no Hugging Face checkpoint: there is no config.json"
        raise InputError(Problem(where=str(path), what=what)) from error
    except (ValueError, RecursionError) as error:
        raise InputError(Problem(where=str(file), what="is not JSON", got=str(error))) from error
    if not isinstance(settings, dict):
        raise InputError(Problem(where=str(file), what="is not a JSON object"))
    return settings


def keep_meaning(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a checked ``config.json`` that says what the model computes."""
    kept = (*(theirs for _, theirs, _ in _SIZES), *_MEANING)
    return {key: settings[key] for key in kept if key in settings}


def read_sizes(path: Path) -> ModelConfig:
    """The sizes of the Llama in a folder.

    Raises InputError with everything in its ``config.json`` that a ModelConfig cannot hold.
    """
    return parse_sizes(read_settings(path), path)


def parse_sizes(settings: Mapping[str, Any], path: Path) -> ModelConfig:
    """:func:`read_sizes` of settings that were read from the folder ``path``."""
    where = str(path / CONFIG_FILE)
    raise_all(
        InputError,
        [
            *_strange_files(path),
            *find_code_keys(settings, where=where),
            *_misfits(settings, where),
        ],
    )
    heads = settings["num_attention_heads"]
    values = {name: settings.get(theirs, default) for name, theirs, default in _SIZES}
    groups = settings.get("num_key_value_heads")
    values["num_query_groups"] = heads if groups is None else groups
    values["rope_theta"] = rope_theta(settings)
    try:
        return ModelConfig.model_validate(values)
    except ValidationError as error:
        names = {name: theirs for name, theirs, _ in _SIZES}
        names["num_query_groups"] = "num_key_value_heads"
        raise InputError(
            replace(problem, key=names.get(problem.key, problem.key))
            for problem in validation_problems(error, where=where)
        ) from error


def rope_theta(settings: Mapping[str, Any]) -> Any:
    """The base of the rotary angles, wherever the version that wrote the file has put it."""
    rope = settings.get("rope_scaling") or settings.get("rope_parameters") or {}
    return rope.get("rope_theta", settings.get("rope_theta", DEFAULT_THETA))


def _strange_files(path: Path) -> Iterator[Problem]:
    file = path / "adapter_config.json"
    if file.exists():
        fix = "merge the adapter into the model's weights first"
        yield Problem(where=str(file), what="the folder holds an adapter", fix=fix)
    file = path / "custom_generate"
    if file.exists():  # transformers runs it when it reads the model beside it
        fix = "remove it where you trust the model"
        yield Problem(where=str(file), what="the folder holds code", fix=fix)


def _misfits(settings: Mapping[str, Any], where: str) -> Iterator[Problem]:
    """Everything in ``config.json`` that asks for another model than a Llama as it is here."""

    def misfit(key: str, what: str, allowed: str) -> Problem:
        what = f"the model cannot be represented: {what}"
        got = json.dumps(settings.get(key))
        return Problem(where=where, key=key, what=what, got=got, allowed=allowed)

    for key, values, what, allowed in _RULES:
        if settings.get(key) not in values:
            yield misfit(key, what, allowed)
    for key in ("rope_scaling", "rope_parameters"):
        if not _is_plain_rope(settings.get(key) or {}):
            yield misfit(key, "rotary positions are scaled", "default")
    for name, theirs, default in _SIZES:
        if default is None and not isinstance(settings.get(theirs), int):
            what, got = "a size is missing", json.dumps(settings.get(theirs))
            yield Problem(where=where, key=theirs, what=what, got=got, allowed=f"{name}, a number")
    size, hidden = settings.get("head_dim"), settings.get("hidden_size")
    heads = settings.get("num_attention_heads")
    if size is None or not isinstance(hidden, int) or not isinstance(heads, int):
        return
    if not isinstance(size, int) or size * heads != hidden:
        allowed = f"hidden_size / num_attention_heads = {hidden} / {heads}"
        yield misfit("head_dim", "heads are not as wide as hidden_size allows", allowed)


def _is_plain_rope(rope: Any) -> bool:
    """Whether a table of rotary settings leaves the positions as they are."""
    if not isinstance(rope, dict):
        return bool(rope == "default")
    kind = rope.get("rope_type", rope.get("type", "default"))
    return (
        kind == "default" and rope.get("partial_rotary_factor", 1) == 1 and set(rope) <= _ROPE_KEYS
    )
