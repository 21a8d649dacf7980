"""The families that are converted, one table each.

A new family is one more entry: take the nearest one here, read transformers'
``configuration_*.py`` for what absent keys mean and ``modeling_*.py`` for what is computed, and
add a tiny model of it to ``tests/unit/steps/blocks/checkpoint/families``. What it computes that
ModelConfig has no switch for has to be built in ``blocks/model`` first.
"""

from __future__ import annotations

from nemotron_style.steps.blocks.checkpoint.families.family import NO_BIAS, SILU, Family

GEMMA = {
    "activation": "geglu",
    "zero_centered_gamma": True,
}
GELU = ("gelu_pytorch_tanh",)
POST_NORMS = {
    "post_self_attn_layernorm.weight": ("post_attention_layernorm.weight",),
    "post_mlp_layernorm.weight": ("post_feedforward_layernorm.weight",),
}
BOTH_NORMS = {
    **POST_NORMS,
    "mlp.linear_fc1.layer_norm_weight": ("pre_feedforward_layernorm.weight",),
}
NO_DIRECTIONS = {"use_bidirectional_attention": (False,)}

FAMILIES = (
    # Llama 2, 3, 3.1, 3.2 and 3.3, SmolLM, SmolLM2, and others that call themselves llama
    Family(
        architecture="llama",
        model_type="llama",
        name="Llama",
        says={**SILU, **NO_BIAS, "mlp_bias": (False,)},
    ),
    # Mistral 7B, Mistral Nemo, Mistral Small; the first versions had a window in every layer
    Family(
        architecture="mistral",
        model_type="mistral",
        name="Mistral",
        keys={
            "max_sequence_length": ("max_position_embeddings", 131072),
            "num_query_groups": ("num_key_value_heads", 8),
            "sliding_window": ("sliding_window", 4096),
        },
        says=SILU,
    ),
    # Qwen 2 and 2.5
    Family(
        architecture="qwen2",
        model_type="qwen2",
        name="Qwen2",
        switches={"qkv_bias": True},
        keys={
            "max_sequence_length": ("max_position_embeddings", 32768),
            "num_query_groups": ("num_key_value_heads", 32),
            "sliding_window": ("sliding_window", 4096),
        },
        says=SILU,
        lists_layer_types=True,
        windows_are_optional=True,
    ),
    Family(
        architecture="qwen3",
        model_type="qwen3",
        name="Qwen3",
        switches={"qk_norm": "head"},
        keys={
            "max_sequence_length": ("max_position_embeddings", 32768),
            "num_query_groups": ("num_key_value_heads", 32),
            "kv_channels": ("head_dim", 128),
            "sliding_window": ("sliding_window", 4096),
        },
        lists_layer_types=True,
        windows_are_optional=True,
    ),
    Family(
        architecture="olmo2",
        model_type="olmo2",
        name="Olmo2",
        switches={"norm_placement": "post", "qk_norm": "full"},
        keys={"norm_epsilon": ("rms_norm_eps", 1e-5)},
        tensors=POST_NORMS,
    ),
    # Phi 3, 3.5 and 4 of up to 4096 tokens: those of 128k scale their positions by longrope
    Family(
        architecture="phi3",
        model_type="phi3",
        name="Phi3",
        keys={
            "max_sequence_length": ("max_position_embeddings", 4096),
            "norm_epsilon": ("rms_norm_eps", 1e-5),
            "sliding_window": ("sliding_window", None),
            "rotary_percent": ("partial_rotary_factor", 1.0),
        },
        says=SILU,
        tensors={
            "self_attention.linear_qkv.weight": ("self_attn.qkv_proj.weight",),
            "mlp.linear_fc1.weight": ("mlp.gate_up_proj.weight",),
        },
        rope_types=(),
    ),
    Family(
        architecture="gemma",
        model_type="gemma",
        name="Gemma",
        switches=GEMMA,
        keys={
            "max_sequence_length": ("max_position_embeddings", 8192),
            "tie_embeddings": ("tie_word_embeddings", True),
            "num_query_groups": ("num_key_value_heads", 16),
            "kv_channels": ("head_dim", 256),
        },
        # the first files say "gelu" and mean the approximation
        says={"hidden_act": (*GELU, "gelu"), "hidden_activation": GELU, **NO_BIAS, **NO_DIRECTIONS},
        scales_embeddings=True,
    ),
    Family(
        architecture="gemma2",
        model_type="gemma2",
        name="Gemma2",
        switches={**GEMMA, "norm_placement": "both"},
        keys={
            "max_sequence_length": ("max_position_embeddings", 8192),
            "tie_embeddings": ("tie_word_embeddings", True),
            "num_query_groups": ("num_key_value_heads", 4),
            "kv_channels": ("head_dim", 256),
            "sliding_window": ("sliding_window", 4096),
            "attention_softcap": ("attn_logit_softcapping", 50.0),
            "logit_softcap": ("final_logit_softcapping", 30.0),
        },
        says={"hidden_activation": GELU, **NO_BIAS, **NO_DIRECTIONS},
        tensors=BOTH_NORMS,
        full_attention_every=2,
        lists_layer_types=True,
        scales_queries=True,
        scales_embeddings=True,
    ),
    # Gemma 3 of text alone (270m, 1b); the larger ones hold a tower for images too
    Family(
        architecture="gemma3",
        model_type="gemma3_text",
        name="Gemma3",
        classes={
            "config": "Gemma3TextConfig",
            "scoring": "Gemma3TextForSequenceClassification",
        },
        switches={**GEMMA, "norm_placement": "both", "qk_norm": "head"},
        keys={
            "max_sequence_length": ("max_position_embeddings", 131072),
            "tie_embeddings": ("tie_word_embeddings", True),
            "num_query_groups": ("num_key_value_heads", 4),
            "kv_channels": ("head_dim", 256),
            "sliding_window": ("sliding_window", 4096),
            "logit_softcap": ("final_logit_softcapping", None),
        },
        says={"hidden_activation": GELU, **NO_BIAS, **NO_DIRECTIONS},
        tensors=BOTH_NORMS,
        rope_theta=1e6,
        rope_types=("linear",),
        local_rope_theta=1e4,
        full_attention_every=6,
        lists_layer_types=True,
        scales_queries=True,
        scales_embeddings=True,
    ),
    # Minitron 4b and 8b, Nemotron-4
    Family(
        architecture="nemotron",
        model_type="nemotron",
        name="Nemotron",
        switches={
            "activation": "squared_relu",
            "normalization": "layernorm",
            "zero_centered_gamma": True,
        },
        keys={
            "max_sequence_length": ("max_position_embeddings", 4096),
            "norm_epsilon": ("norm_eps", 1e-5),
            "rotary_percent": ("partial_rotary_factor", 0.5),
        },
        says={"hidden_act": ("relu2",), **NO_BIAS, "mlp_bias": (False,)},
        tensors={"mlp.linear_fc1.weight": ("mlp.up_proj.weight",)},
    ),
)
BY_MODEL_TYPE = {family.model_type: family for family in FAMILIES}
BY_ARCHITECTURE = {family.architecture: family for family in FAMILIES}
# What Megatron-Bridge makes is a checkpoint for NeMo: no model here computes another family, so
# there is nothing that the training steps could read.
OTHER_FAMILIES = (
    "no training step here computes another one; rl/rlhf with backend=nemo_rl takes such a folder "
    "as it is where Megatron-Bridge knows it, and for NeMo itself Megatron-Bridge converts it: "
    'python -c "from megatron.bridge import AutoBridge; '
    "AutoBridge.import_ckpt('FOLDER', 'NEW_FOLDER')\""
)
"""What to do with a model of a family that is not in the table."""
