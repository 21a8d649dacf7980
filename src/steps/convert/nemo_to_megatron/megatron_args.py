"""The arguments of a Megatron-LM run, which ``common.pt`` holds, as NeMo's keys for the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nemotron_style.runtime.errors import InputError, Problem, raise_all
from nemotron_style.steps.convert.nemo_to_megatron.archive import ModelFiles
from nemotron_style.steps.convert.nemo_to_megatron.inert_pickle import Inert, read_archive
from nemotron_style.steps.convert.nemo_to_megatron.layout import COMMON
from nemotron_style.steps.convert.nemo_to_megatron.model_keys import NemoConfig

# NeMo's key, and Megatron-LM's argument of the same meaning.
_SAME = (
    *((name, name) for name in ("num_layers", "hidden_size", "ffn_hidden_size", "kv_channels")),
    *((name, name) for name in ("num_attention_heads", "position_embedding_type", "rotary_base")),
    *((name, name) for name in ("qk_layernorm", "window_size", "multi_latent_attention")),
    *((name, name) for name in ("rotary_interleaved", "softmax_scale")),
    ("encoder_seq_length", "max_position_embeddings"),
    ("rotary_percentage", "rotary_percent"),
    ("layernorm_epsilon", "norm_epsilon"),
    ("qkv_bias", "add_qkv_bias"),
    ("bias", "add_bias_linear"),
    ("num_moe_experts", "num_experts"),
    ("normalization", "normalization"),
    ("layernorm_zero_centered_gamma", "apply_layernorm_1p"),
    ("scale_positional_embedding", "use_rope_scaling"),
    ("scale_factor", "rope_scaling_factor"),
    ("seq_len_interpolation_factor", "rotary_seq_len_interpolation_factor"),
)
# Arguments that have no key in NeMo's config, and change what is computed where they are set.
_OFF = (
    *("hybrid_layer_pattern", "hybrid_override_pattern", "mtp_num_layers", "no_rope_freq"),
    *("experimental_attention_variant", "heterogeneous_layers_config_path", "qk_l2_norm"),
    *("attention_output_gate", "linear_attention_freq", "glu_linear_offset", "use_kitchen"),
    *("activation_func_clamp_value", "quick_geglu", "attn_logit_softcapping", "embedding_scale"),
)


def read_args(files: ModelFiles) -> NemoConfig:
    """What Megatron-LM's arguments say about the model, under NeMo's keys.

    Raises InputError where the file holds no arguments, or some that no model here computes.
    """
    where = f"{files.where}: {COMMON}"
    try:
        common = read_archive(files.spans[COMMON])
        args = common["args"].state
    except Exception as error:  # a damaged archive can raise anything
        what = "holds no arguments of Megatron-LM, which say what the model is"
        got = f"{type(error).__name__}: {error}"[:200]
        raise InputError(Problem(where=where, what=what, got=got)) from error
    if not isinstance(args, dict):
        raise InputError(Problem(where=where, key="args", what="are no arguments"))
    raise_all(InputError, list(_find_misfits(args, where)))
    keys = {ours: args[theirs] for ours, theirs in _SAME if _is_plain(args.get(theirs))}
    if not args.get("group_query_attention"):
        keys["num_query_groups"] = None
    else:
        keys["num_query_groups"] = args.get("num_query_groups")
    return NemoConfig(
        where,
        keys
        | {
            "mcore_gpt": True,
            "activation": _activation(args),
            "share_embeddings_and_output_weights": not args.get(
                "untie_embeddings_and_output_weights"
            ),
        },
    )


def _is_plain(value: Any) -> bool:
    return value is not None and not isinstance(value, Inert)


def _activation(args: Mapping[str, Any]) -> str:
    if args.get("squared_relu"):
        return "squared-relu"
    return "swiglu" if args.get("swiglu") else "gelu"


def _find_misfits(args: Mapping[str, Any], where: str) -> Iterator[Problem]:
    for name in _OFF:
        if args.get(name) not in (None, False, 0, 0.0, "", [], {}):
            what = "the model cannot be represented: this argument changes what it computes"
            yield Problem(where=where, key=name, what=what, got=str(args[name])[:200])
    if args.get("use_legacy_models") or args.get("use_mcore_models") is False:
        what = "the model cannot be represented: it is not megatron-core's"
        yield Problem(where=where, key="use_mcore_models", what=what)
