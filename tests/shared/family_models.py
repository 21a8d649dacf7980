"""Tiny random models of every family, written by transformers as Hugging Face folders."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TOKEN_IDS = {key: SIZES[key] for key in ("pad_token_id", "bos_token_id", "eos_token_id")}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LINEAR = {"rope_type": "linear", "factor": 2.0}
PATTERN = ["sliding_attention", "full_attention"] * 2

# In the form of config.json that every version of transformers reads; version 5 writes its own.
# transformers' name of the family, and what differs from its own defaults besides the sizes
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama 2": ("Llama", {"num_key_value_heads": 4}),
    "llama 3": ("Llama", {"rope_theta": 5e5}),
    "llama 3.1": ("Llama", {"rope_scaling": LLAMA3, "rope_theta": 500.0}),
    "llama 3.2": (
        "Llama",
        {"rope_scaling": LLAMA3, "tie_word_embeddings": True, "head_dim": 16},
    ),
    "llama linear": ("Llama", {"rope_scaling": LINEAR}),
    "llama yarn": (
        "Llama",
        {"rope_scaling": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.3, "truncate": False}},
    ),
    "smollm 2": ("Llama", {"num_attention_heads": 8, "tie_word_embeddings": True}),
    "mistral 0.1": ("Mistral", {"sliding_window": 5}),
    "mistral nemo": ("Mistral", {"sliding_window": None, "head_dim": 16}),
    "qwen 2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen 2.5 yarn": ("Qwen2", {"rope_scaling": YARN}),
    "qwen 3": ("Qwen3", {"head_dim": 16}),
    "qwen 3 window": (
        "Qwen3",
        {"head_dim": 16, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0},
    ),
    "olmo 2": ("Olmo2", {}),
    "phi 3": ("Phi3", {"sliding_window": 7}),
    "phi 4": ("Phi3", {"partial_rotary_factor": 0.5}),
    "gemma": ("Gemma", {"head_dim": 16}),
    "gemma 2": ("Gemma2", {"head_dim": 16, "sliding_window": 5, "query_pre_attn_scalar": 9}),
    "gemma 3": (
        "Gemma3",
        {
            "head_dim": 16,
            "sliding_window": 5,
            "query_pre_attn_scalar": 9,
            "layer_types": PATTERN,
            "rope_scaling": LINEAR,
            "rope_local_base_freq": 5e3,
        },
    ),
    "gemma 3 capped": (
        "Gemma3",
        {"head_dim": 16, "sliding_window": 5, "final_logit_softcapping": 5.0},
    ),
    "nemotron": ("Nemotron", {}),
}


def write_model(variant: str, folder: Path, tokens_BS: Tensor) -> Tensor:
    """Write the model of a variant to ``folder``; transformers' logits ``[B, S, vocabulary]``."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    name, changes = VARIANTS[variant]
    config_class = "Gemma3TextConfig" if name == "Gemma3" else f"{name}Config"
    # transformers writes into the tables that it is given
    config = getattr(transformers, config_class)(**deepcopy({**SIZES, **changes}))
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    draw = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for weight in model.parameters():  # norms and biases too: no two numbers are alike
            weight.add_(torch.randn(weight.shape, generator=draw) * 0.15)
        logits = model(input_ids=tokens_BS).logits
    model.save_pretrained(folder)
    return logits
