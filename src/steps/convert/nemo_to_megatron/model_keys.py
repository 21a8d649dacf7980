"""``model_config.yaml`` of NeMo and a model's config: the same facts, and what has no counterpart.

NeMo's file can ask for things that the model here does not do. Each of them would load without
complaint and compute something else, so each is refused, by its key. What a key means, and what it
means where it is absent, is that of NeMo's ``MegatronGPTModel`` on megatron-core.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml
from pydantic import ValidationError

from nemotron_style.runtime.errors import InputError, Problem, raise_all
from nemotron_style.steps.blocks.settings.json_model import validation_problems
from nemotron_style.steps.blocks.settings.model_config import ModelConfig, RopeScaling
from nemotron_style.steps.convert.nemo_to_megatron.training_keys import is_of_training

_NONE = object()
_OFF = (None, False, "", 0, [], {})

# Our name, NeMo's, and what an absent key means to NeMo (_NONE: it must be there).
_SIZES: tuple[tuple[str, str, Any], ...] = (
    ("num_layers", "num_layers", _NONE),
    ("hidden_size", "hidden_size", _NONE),
    ("ffn_hidden_size", "ffn_hidden_size", _NONE),
    ("num_attention_heads", "num_attention_heads", _NONE),
    ("kv_channels", "kv_channels", None),
    ("max_sequence_length", "encoder_seq_length", 512),
    ("rope_theta", "rotary_base", 10000.0),
    ("rotary_percent", "rotary_percentage", 1.0),
    ("norm_epsilon", "layernorm_epsilon", 1e-5),
    ("tie_embeddings", "share_embeddings_and_output_weights", True),
    ("qkv_bias", "qkv_bias", False),
    ("query_scale", "softmax_scale", None),
)
_ACTIVATIONS = {
    "swiglu": "swiglu",
    "fast-swiglu": "swiglu",
    "geglu": "geglu",
    "fast-geglu": "geglu",
    "squared-relu": "squared_relu",
}
_NORMS = {"rmsnorm": "rmsnorm", "layernorm": "layernorm", "layernorm1p": "layernorm"}

# Key, what its absence means, values that mean what the model does, what another asks for, advice.
_RULES: tuple[tuple[str, Any, tuple[Any, ...], str, str], ...] = (
    ("mcore_gpt", False, (True,), "weights under the names of before megatron-core", "mcore"),
    ("position_embedding_type", "learned_absolute", ("rope",), "positions that are not rotary", ""),
    ("bias", True, (False,), "biases in the linear layers", ""),
    ("transformer_block_type", "pre_ln", ("pre_ln",), "norms in other places", ""),
    ("attention_type", "multihead", ("multihead",), "another attention", ""),
    ("rotary_interleaved", None, _OFF, "rotary pairs that lie side by side", ""),
    ("num_moe_experts", None, _OFF, "a mixture of experts", ""),
    ("multi_latent_attention", None, _OFF, "latent attention", ""),
    ("window_size", None, (*_OFF, [-1, -1]), "attention over a window", ""),
    ("megatron_legacy", None, _OFF, "weights in a layout of before NeMo", "mcore"),
    ("headscale", None, _OFF, "a learned scale of each head", ""),
    ("hyena", None, _OFF, "convolutions instead of attention", ""),
    ("drop_layers", None, _OFF, "layers that are passed over", ""),
    ("retro", None, _OFF, "retrieval", ""),
    ("regression", None, _OFF, "a reward model", "reward"),
    ("reward_model_type", None, _OFF, "a reward model", "reward"),
    (
        "name",
        "",
        (
            "",
            None,
            "te_gpt",
            "megatron_gpt_full_te_layer_autocast",
            "modelopt",
            "decoder_block_gpt",
        ),
        "layers of another make",
        "",
    ),
)
_ADVICE = {
    "mcore": "load it in NeMo with mcore_gpt=True, and save it again",
    "reward": "train one here, with reward/regression, from the model that it was made from",
    "peft": "merge the adapter first (merge.py of NeMo's scripts/nlp_language_modeling)",
}
_HANDLED = frozenset(
    (
        *(theirs for _, theirs, _ in _SIZES),
        *(rule[0] for rule in _RULES),
        *("num_query_groups", "activation", "openai_gelu", "normalization", "qk_layernorm"),
        *("layernorm_zero_centered_gamma", "seq_len_interpolation_factor", "peft"),
        *("scale_positional_embedding", "scale_factor", "low_freq_factor", "high_freq_factor"),
        *("old_context_len", "apply_embedding_scaling", "mcore_customization_config"),
    )
)
_REFERENCE = re.compile(r"\$\{(?:\.|model\.)?(\w+)\}")


@dataclass(frozen=True)
class NemoConfig:
    """The keys of a ``model_config.yaml``, with references to each other resolved."""

    where: str
    keys: Mapping[str, Any]
    ignored: tuple[str, ...] = field(default=())

    def section(self, key: str) -> Mapping[str, Any]:
        """A table of it; empty where there is none."""
        value = self.keys.get(key)
        return value if isinstance(value, Mapping) else {}


def parse_config(text: str, *, where: str, ignored: tuple[str, ...] = ()) -> NemoConfig:
    """The keys in the text of a ``model_config.yaml``. Raises InputError where it is none."""
    try:
        keys = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        got = " ".join(str(error).split())[:200]
        raise InputError(Problem(where=where, what="is not valid YAML", got=got)) from error
    if not isinstance(keys, dict):
        raise InputError(Problem(where=where, what="is not a table of keys"))
    resolved = {str(key): _resolve(value, keys) for key, value in keys.items()}
    return NemoConfig(where, resolved, ignored)


def _resolve(value: Any, keys: Mapping[str, Any]) -> Any:
    for _ in range(4):  # a reference may name another one
        found = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
        if not found or found[1] not in keys:
            return value
        value = keys[found[1]]
    return value


def read_model_config(config: NemoConfig, *, vocab_size: int) -> ModelConfig:
    """The model that a NeMo config describes; ``vocab_size`` are the rows of its embedding.

    Raises InputError with everything in it that a ModelConfig cannot hold.
    """
    raise_all(InputError, list(find_misfits(config)))
    keys = config.keys
    values = {
        ours: keys[theirs] if keys.get(theirs) is not None else absent
        for ours, theirs, absent in _SIZES
    }
    heads, groups = values["num_attention_heads"], keys.get("num_query_groups")
    values |= {
        "vocab_size": vocab_size,
        "num_query_groups": heads if groups is None else groups,
        "activation": _ACTIVATIONS[keys["activation"]],
        "normalization": _NORMS[_norm(keys)],
        "zero_centered_gamma": _is_zero_centered(keys),
        "qk_norm": "head" if keys.get("qk_layernorm") else "none",
    }
    if keys.get("apply_embedding_scaling"):
        values["embedding_multiplier"] = keys["hidden_size"] ** 0.5
    values["architecture"] = _family(values)
    try:
        values["rope_scaling"] = _rope_scaling(keys)
        return ModelConfig.model_validate(values)
    except ValidationError as error:
        names = {ours: theirs for ours, theirs, _ in _SIZES}
        problems = list(validation_problems(error, where=config.where))
        raise InputError(
            Problem(where=one.where, key=names.get(one.key, one.key), what=one.what, got=one.got)
            for one in problems
        ) from error


def find_misfits(config: NemoConfig) -> Iterator[Problem]:
    """Everything in a NeMo config that asks for what no model here computes."""
    keys = config.keys

    def misfit(key: str, what: str, allowed: str = "", advice: str = "") -> Problem:
        got = json.dumps(keys.get(key), default=str)[:200]
        got = got if key in keys else "no such key"
        what = f"the model cannot be represented: {what}"
        fix = _ADVICE.get(advice, "")
        return Problem(where=config.where, key=key, what=what, got=got, allowed=allowed, fix=fix)

    for key, absent, values, what, advice in _RULES:
        if keys.get(key, absent) not in values:
            yield misfit(key, what, json.dumps(values[0]), advice)
    for _, key, absent in _SIZES:
        if absent is _NONE and type(keys.get(key)) is not int:
            yield misfit(key, "a size is missing", "a whole number")
    activation, tanh = keys.get("activation", "gelu"), bool(keys.get("openai_gelu"))
    if activation not in _ACTIVATIONS:
        yield misfit("activation", "another activation in the MLP", ", ".join(_ACTIVATIONS))
    elif tanh != (_ACTIVATIONS[activation] == "geglu"):
        what = f"{activation} with{'' if tanh else 'out'} the GELU by tanh"
        yield misfit("openai_gelu", what, "true with geglu, false with others")
    if _norm(keys) not in _NORMS:
        yield misfit("normalization", "another norm", ", ".join(_NORMS))
    elif keys.get("qk_layernorm") and _NORMS[_norm(keys)] != "rmsnorm":
        yield misfit("qk_layernorm", "queries and keys that are normalised otherwise", "rmsnorm")
    if keys.get("scale_positional_embedding") and keys.get("seq_len_interpolation_factor"):
        key = "seq_len_interpolation_factor"
        yield misfit(key, "rotary positions that are scaled twice", "null, where they are scaled")
    custom = config.section("mcore_customization_config")
    if any(value not in _OFF for value in custom.values()):
        yield misfit("mcore_customization_config", "settings of another architecture", "none")
    scheme = config.section("peft").get("peft_scheme")
    if scheme not in (None, "none"):
        yield misfit("peft", "an adapter beside a model", "peft_scheme: none", "peft")
    yield from _unknown_keys(config)


def _unknown_keys(config: NemoConfig) -> Iterator[Problem]:
    for key, value in config.keys.items():
        known = key in _HANDLED or key in config.ignored or is_of_training(key)
        if not known and value not in _OFF:
            what = "a key that is not known may change what the model computes"
            fix = f"where it does not, add it to model.ignore_keys: model.ignore_keys=[{key}]"
            got = json.dumps(value, default=str)[:200]
            yield Problem(where=config.where, key=key, what=what, got=got, fix=fix)


def _norm(keys: Mapping[str, Any]) -> str:
    return str(keys.get("normalization", "layernorm")).lower()


def _is_zero_centered(keys: Mapping[str, Any]) -> bool:
    return _norm(keys) == "layernorm1p" or bool(keys.get("layernorm_zero_centered_gamma"))


def _rope_scaling(keys: Mapping[str, Any]) -> RopeScaling | None:
    if keys.get("scale_positional_embedding"):
        return RopeScaling(
            rope_type="llama3",
            factor=keys.get("scale_factor", 8),
            low_freq_factor=keys.get("low_freq_factor", 1),
            high_freq_factor=keys.get("high_freq_factor", 4),
            original_max_position_embeddings=keys.get("old_context_len", 8192),
        )
    factor = keys.get("seq_len_interpolation_factor")
    return RopeScaling(rope_type="linear", factor=factor) if factor else None


def _family(values: Mapping[str, Any]) -> str:
    """The family that a model belongs to, by which it is written for Hugging Face."""
    if values["activation"] == "squared_relu":
        return "nemotron"
    if values["activation"] == "geglu":
        return "gemma"
    if values["qk_norm"] != "none":
        return "qwen3"
    return "qwen2" if values["qkv_bias"] else "llama"
