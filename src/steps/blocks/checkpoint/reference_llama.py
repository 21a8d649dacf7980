"""A Llama as Hugging Face's files define it, in plain torch and in float32.

It is written from the meaning of ``config.json`` and of the tensors' names, and shares nothing
with the model that is trained here or with the conversion: it is what both are checked against
where transformers is not installed. One layer is held at a time, so it needs little memory.

Shape legend: ``_B`` rows, ``_S`` tokens of a row, ``_H`` heads, ``_D`` width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nemotron_style.steps.blocks.checkpoint.hf_config import rope_theta

Read = Callable[[str], Tensor]


@torch.inference_mode()
def llama_logits(settings: Mapping[str, Any], read: Read, tokens_BS: Tensor) -> Tensor:
    """Logits ``[B, S, vocabulary]`` of causal rows.

    ``settings`` is ``config.json``; ``read`` gives a tensor for its name.
    """
    tied = settings.get("tie_word_embeddings", False)
    head = read(f"{'model.embed_tokens' if tied else 'lm_head'}.weight")
    return llama_states(settings, read, tokens_BS) @ head.to(tokens_BS.device, torch.float32).T


@torch.inference_mode()
def llama_states(settings: Mapping[str, Any], read: Read, tokens_BS: Tensor) -> Tensor:
    """Hidden states ``[B, S, hidden]`` after the last norm: what a head of any sort reads."""

    def weight(name: str) -> Tensor:
        return read(f"{name}.weight").to(tokens_BS.device, torch.float32)

    epsilon = settings.get("rms_norm_eps", 1e-6)
    states = F.embedding(tokens_BS, weight("model.embed_tokens"))
    for layer in range(settings["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        normed = _norm(states, weight(f"{prefix}.input_layernorm"), epsilon)
        states = states + _attend(settings, weight, f"{prefix}.self_attn", normed)
        normed = _norm(states, weight(f"{prefix}.post_attention_layernorm"), epsilon)
        gate = F.silu(normed @ weight(f"{prefix}.mlp.gate_proj").T)
        up = normed @ weight(f"{prefix}.mlp.up_proj").T
        states = states + (gate * up) @ weight(f"{prefix}.mlp.down_proj").T
    return _norm(states, weight("model.norm"), epsilon)


def _norm(states: Tensor, gain: Tensor, epsilon: float) -> Tensor:
    return states * torch.rsqrt(states.square().mean(-1, keepdim=True) + epsilon) * gain


def _attend(settings: Mapping[str, Any], weight: Read, prefix: str, states: Tensor) -> Tensor:
    heads = settings["num_attention_heads"]
    key_heads = settings.get("num_key_value_heads") or heads
    batch, length, _ = states.shape

    def project(name: str, count: int) -> Tensor:
        product = states @ weight(f"{prefix}.{name}").T
        return product.view(batch, length, count, -1).transpose(1, 2)

    theta = float(rope_theta(settings))
    query_BHSD = _turn(project("q_proj", heads), theta)
    key_BHSD = _turn(project("k_proj", key_heads), theta)
    # head h of the queries reads key head h // (heads / key heads)
    key_BHSD = key_BHSD.repeat_interleave(heads // key_heads, dim=1)
    value_BHSD = project("v_proj", key_heads).repeat_interleave(heads // key_heads, dim=1)
    mixed = F.scaled_dot_product_attention(query_BHSD, key_BHSD, value_BHSD, is_causal=True)
    return mixed.transpose(1, 2).flatten(2) @ weight(f"{prefix}.o_proj").T


def _turn(states_BHSD: Tensor, theta: float) -> Tensor:
    """Turn the pair (x_i, x_{i + D/2}) at position s by the angle ``s * theta ** (-2 i / D)``."""
    length, size = states_BHSD.shape[2:]
    place = torch.arange(length, dtype=torch.float32, device=states_BHSD.device)
    exponent = torch.arange(0, size, 2, dtype=torch.float32, device=states_BHSD.device) / size
    angle = place[:, None] / theta**exponent
    first, second = states_BHSD.chunk(2, dim=-1)
    turned = (
        first * angle.cos() - second * angle.sin(),
        second * angle.cos() + first * angle.sin(),
    )
    return torch.cat(turned, dim=-1)
