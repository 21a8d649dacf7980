"""What ours and another library's code are measured on: the same work on the same weights."""

from __future__ import annotations

import torch
from torch import nn

from nemotron_style.steps.blocks.checkpoint.hf_config import build_settings
from nemotron_style.steps.blocks.checkpoint.hf_weights import export_weights
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import full_weights
from nemotron_style.steps.blocks.settings.model_config import ModelConfig

PROMPTS, SAMPLES, PROMPT_TOKENS, NEW_TOKENS = 4, 8, 64, 64
ROUNDS = {"1M": 15, "30M": 5}


def sizes(name: str) -> ModelConfig:
    vocabulary, hidden, layers, heads, ffn = {
        "1M": (1024, 128, 4, 4, 352),
        "30M": (8192, 512, 8, 8, 1408),
    }[name]
    return ModelConfig(
        num_layers=layers,
        hidden_size=hidden,
        ffn_hidden_size=ffn,
        num_attention_heads=heads,
        num_query_groups=heads // 2,
        vocab_size=vocabulary,
        max_sequence_length=PROMPT_TOKENS + NEW_TOKENS,
    )


def hugging_face(model: nn.Module, config: ModelConfig, dtype: torch.dtype) -> nn.Module:
    """transformers' Llama with the weights of ``model``."""
    from transformers import LlamaConfig, LlamaForCausalLM

    name = str(dtype).removeprefix("torch.")
    settings = build_settings(config, dtype=name, token_ids={})
    other = LlamaForCausalLM(LlamaConfig(**settings, attn_implementation="sdpa")).to(dtype)
    weights = export_weights(full_weights(model), config)
    other.load_state_dict({name: part for parts in weights for name, part in parts.items()})
    other.generation_config.eos_token_id = None
    return other.eval()
