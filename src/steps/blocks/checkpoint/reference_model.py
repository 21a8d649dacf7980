"""A model as Hugging Face's files define it, in plain torch.

It is written from the meaning of ``config.json`` and of the tensors' names, and shares nothing
with the model that is trained here, with the table of families or with the conversion: it is what
all of them are checked against where transformers is not installed. One layer is held at a time,
so it needs little memory. It reads files that :mod:`hf_config` has checked.

Shape legend: ``_B`` rows, ``_S`` tokens of a row, ``_H`` heads, ``_D`` width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Read = Callable[[str], Tensor]
Settings = Mapping[str, Any]

_GEMMA = ("gemma", "gemma2", "gemma3_text")
_TIED = _GEMMA  # where config.json does not say
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "nemotron": lambda up: F.relu(up).square(),
    **{kind: lambda gate: F.gelu(gate, approximate="tanh") for kind in _GEMMA},
}
# Which norms stand before attention, on its output, before the MLP, and on its output.
_LLAMA_NORMS = ("input_layernorm", None, "post_attention_layernorm", None)
_GEMMA_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
_NORMS = {
    "olmo2": (None, "post_attention_layernorm", None, "post_feedforward_layernorm"),
    "gemma2": _GEMMA_NORMS,
    "gemma3_text": _GEMMA_NORMS,
}


@torch.inference_mode()
def reference_logits(
    settings: Settings, read: Read, tokens_BS: Tensor, *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Logits ``[B, S, vocabulary]`` of causal rows, computed in ``dtype``.

    ``settings`` is ``config.json``; ``read`` gives a tensor for its name.
    """
    tied = settings.get("tie_word_embeddings", settings["model_type"] in _TIED)
    head = read(f"{'model.embed_tokens' if tied else 'lm_head'}.weight")
    states = reference_states(settings, read, tokens_BS, dtype=dtype)
    logits = states @ head.to(tokens_BS.device, dtype).T
    cap = _cap(settings, "final_logit_softcapping", {"gemma2": 30.0})
    return logits if cap is None else torch.tanh(logits / cap) * cap


@torch.inference_mode()
def reference_states(
    settings: Settings, read: Read, tokens_BS: Tensor, *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Hidden states ``[B, S, hidden]`` after the last norm: what a head of any sort reads."""
    kind = settings["model_type"]

    def weight(name: str) -> Tensor:
        return read(name).to(tokens_BS.device, dtype)

    def norm(states: Tensor, name: str | None) -> Tensor:
        return states if name is None else _norm(settings, weight, name, states)

    states = F.embedding(tokens_BS, weight("model.embed_tokens.weight"))
    if kind in _GEMMA:
        states = states * states.shape[-1] ** 0.5
    for layer in range(settings["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        norms = (name and prefix + name for name in _NORMS.get(kind, _LLAMA_NORMS))
        before, after, before_mlp, after_mlp = norms
        mixed = _attend(settings, weight, layer, norm(states, before))
        states = states + norm(mixed, after)
        changed = _feed(settings, weight, f"{prefix}mlp.", norm(states, before_mlp))
        states = states + norm(changed, after_mlp)
    return norm(states, "model.norm")


def _norm(settings: Settings, weight: Read, name: str, states: Tensor) -> Tensor:
    kind, gain = settings["model_type"], weight(f"{name}.weight")
    if kind == "nemotron":
        bias, epsilon = weight(f"{name}.bias"), settings.get("norm_eps", 1e-5)
        return F.layer_norm(states, gain.shape, gain + 1, bias, epsilon)
    epsilon = settings.get("rms_norm_eps", 1e-5 if kind in ("olmo2", "phi3") else 1e-6)
    normed = states * torch.rsqrt(states.square().mean(-1, keepdim=True) + epsilon)
    return normed * (gain + 1 if kind in _GEMMA else gain)


def _feed(settings: Settings, weight: Read, prefix: str, states: Tensor) -> Tensor:
    kind = settings["model_type"]
    activate = _ACTIVATIONS.get(kind, F.silu)
    if kind == "nemotron":
        inner = activate(states @ weight(f"{prefix}up_proj.weight").T)
    elif kind == "phi3":
        gate, up = (states @ weight(f"{prefix}gate_up_proj.weight").T).chunk(2, dim=-1)
        inner = activate(gate) * up
    else:
        gate = states @ weight(f"{prefix}gate_proj.weight").T
        inner = activate(gate) * (states @ weight(f"{prefix}up_proj.weight").T)
    return inner @ weight(f"{prefix}down_proj.weight").T


def _attend(settings: Settings, weight: Read, layer: int, states: Tensor) -> Tensor:
    kind, prefix = settings["model_type"], f"model.layers.{layer}.self_attn."
    heads = settings["num_attention_heads"]
    groups = settings.get("num_key_value_heads", _GROUPS.get(kind)) or heads
    size = settings.get("head_dim", _HEAD_DIM.get(kind)) or settings["hidden_size"] // heads
    window = _window(settings, layer)
    query, key, value = _project(kind, weight, prefix, states, [heads * size, groups * size])
    if kind == "olmo2":
        query = _norm(settings, weight, f"{prefix}q_norm", query)
        key = _norm(settings, weight, f"{prefix}k_norm", key)
    query_BSHD, key_BSHD, value_BSHD = (
        part.unflatten(-1, (-1, size)) for part in (query, key, value)
    )
    if kind in ("qwen3", "gemma3_text"):
        query_BSHD = _norm(settings, weight, f"{prefix}q_norm", query_BSHD)
        key_BSHD = _norm(settings, weight, f"{prefix}k_norm", key_BSHD)
    angles, length = _angles(settings, states.shape[1], size, local=window is not None)
    angles = angles.to(states.device)
    query_BHSD, key_BHSD, value_BHSD = (
        part.transpose(1, 2)
        for part in (_turn(query_BSHD, angles, length), _turn(key_BSHD, angles, length), value_BSHD)
    )
    # head h of the queries reads key head h // (heads / key heads)
    key_BHSD = key_BHSD.repeat_interleave(heads // groups, dim=1)
    value_BHSD = value_BHSD.repeat_interleave(heads // groups, dim=1)
    scale = size**-0.5
    if kind in ("gemma2", "gemma3_text"):
        scale = settings.get("query_pre_attn_scalar", 256) ** -0.5
    cap = _cap(settings, "attn_logit_softcapping", {"gemma2": 50.0}) if kind == "gemma2" else None
    mixed = _mix(query_BHSD, key_BHSD, value_BHSD, window=window, scale=scale, cap=cap)
    return mixed.transpose(1, 2).flatten(2) @ weight(f"{prefix}o_proj.weight").T


# What an absent key means, where it is not what it means to a Llama.
_GROUPS = {"mistral": 8, "qwen2": 32, "qwen3": 32, "gemma": 16, "gemma2": 4, "gemma3_text": 4}
_HEAD_DIM = {"qwen3": 128, **dict.fromkeys(_GEMMA, 256)}


def _project(
    kind: str, weight: Read, prefix: str, states: Tensor, widths: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values ``[B, S, heads * width]``; ``widths`` of the first and the rest."""
    if kind == "phi3":
        product = states @ weight(f"{prefix}qkv_proj.weight").T
        query, key, value = product.split([*widths, widths[1]], dim=-1)
        return query, key, value

    def project(name: str) -> Tensor:
        product = states @ weight(f"{prefix}{name}.weight").T
        return product + weight(f"{prefix}{name}.bias") if kind == "qwen2" else product

    return project("q_proj"), project("k_proj"), project("v_proj")


def _mix(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    window: int | None,
    scale: float,
    cap: float | None,
) -> Tensor:
    """Attention ``[B, H, S, D]`` of each token to itself and those before it."""
    width = query.shape[2]
    if cap is None and (window is None or window >= width):
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
    place = torch.arange(width, device=query.device)
    distance = place[:, None] - place
    seen = (distance >= 0) & (distance < (window or width))
    scores = query @ key.transpose(-1, -2) * scale
    if cap is not None:
        scores = torch.tanh(scores / cap) * cap
    return scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value


def _window(settings: Settings, layer: int) -> int | None:
    """How many tokens a layer (from 0) sees; None: all."""
    kind = settings["model_type"]
    window: int | None = settings.get("sliding_window", _WINDOW.get(kind))
    if kind in ("qwen2", "qwen3") and not settings.get("use_sliding_window"):
        return None
    if kind in ("mistral", "phi3"):
        return window
    types = settings.get("layer_types")
    if types:
        return window if types[layer] == "sliding_attention" else None
    if kind in ("qwen2", "qwen3"):
        return window if layer >= settings.get("max_window_layers", 28) else None
    if kind == "gemma2":
        return window if layer % 2 == 0 else None
    if kind == "gemma3_text":
        return window if (layer + 1) % settings.get("sliding_window_pattern", 6) else None
    return None


_WINDOW = dict.fromkeys(("mistral", "qwen2", "qwen3", "gemma2", "gemma3_text"), 4096)


def _cap(settings: Settings, key: str, absent: Mapping[str, float]) -> float | None:
    value: float | None = settings.get(key, absent.get(settings["model_type"]))
    return value


def _turn(states_BSHD: Tensor, angle: Tensor, length: float) -> Tensor:
    """Turn the pair (x_i, x_{i + half}) of the part that is rotated by ``angle`` ``[S, half]``."""
    half = angle.shape[-1]
    first, second, rest = states_BSHD.split([half, half, states_BSHD.shape[-1] - 2 * half], dim=-1)
    cos, sin = angle.cos()[:, None] * length, angle.sin()[:, None] * length
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


def _angles(settings: Settings, tokens: int, size: int, *, local: bool) -> tuple[Tensor, float]:
    """Angles ``[S, rotated / 2]`` of a layer with (``local``) or without a window, and what the
    length of queries and keys is multiplied by."""
    kind = settings["model_type"]
    rope = settings.get("rope_scaling") or settings.get("rope_parameters") or {}
    rope = rope if isinstance(rope, dict) else {}
    top, other = "rope_theta", 10000.0
    if kind == "gemma3_text":
        nested = settings.get("rope_parameters") or {}
        sort = "sliding_attention" if local else "full_attention"
        rope = (nested.get(sort) or {}) | ({} if local else settings.get("rope_scaling") or {})
        top, other = ("rope_local_base_freq", 1e4) if local else ("rope_theta", 1e6)
    theta = float(rope.get("rope_theta", settings.get(top, other)))
    share = rope.get("partial_rotary_factor", settings.get("partial_rotary_factor"))
    size = int(size * (share or (0.5 if kind == "nemotron" else 1.0)))
    exponent = torch.arange(0, size, 2, dtype=torch.float32) / size
    speed, length = _stretch(settings, rope, 1 / theta**exponent, theta)
    return torch.arange(tokens, dtype=torch.float32)[:, None] * speed, length


def _stretch(
    settings: Settings, rope: Mapping[str, Any], speed: Tensor, theta: float
) -> tuple[Tensor, float]:
    """The angles from one token to the next after scaling, and the factor of the length."""
    sort = rope.get("rope_type", rope.get("type", "default"))
    if sort == "default":
        return speed, 1.0
    factor = float(rope["factor"])
    if sort == "linear":
        return speed / factor, 1.0
    first = settings.get("original_max_position_embeddings") or rope.get(
        "original_max_position_embeddings", settings.get("max_position_embeddings")
    )
    if sort == "llama3":
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        wave = 2 * math.pi / speed
        blend = (first / wave - low) / (high - low)
        between = (1 - blend) * speed / factor + blend * speed
        slow = torch.where(wave > first / low, speed / factor, between)
        return torch.where(wave < first / high, speed, slow), 1.0
    assert sort == "yarn", sort
    pairs = len(speed)

    def pair_that_turns(times: float) -> float:
        return pairs * math.log(first / (times * 2 * math.pi)) / math.log(theta)

    begin, end = (pair_that_turns(rope.get(key) or times) for key, times in _BETAS)
    if rope.get("truncate", True):
        begin, end = math.floor(begin), math.ceil(end)
    begin, end = max(begin, 0), min(end, 2 * pairs - 1)
    ramp = (torch.arange(pairs, dtype=torch.float32) - begin) / ((end - begin) or 0.001)
    ramp = ramp.clamp(0, 1)
    grown = [
        0.1 * (rope.get(key) or 0) * math.log(factor) + 1 for key in ("mscale", "mscale_all_dim")
    ]
    length = grown[0] / grown[1] if all(rope.get(key) for key in _MSCALES) else None
    length = length or 0.1 * math.log(factor) + 1
    return speed / factor * ramp + speed * (1 - ramp), float(rope.get("attention_factor") or length)


_BETAS = (("beta_fast", 32), ("beta_slow", 1))
_MSCALES = ("mscale", "mscale_all_dim")
