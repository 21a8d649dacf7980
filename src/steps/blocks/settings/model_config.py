"""The sizes and switches of a model; readable without torch."""

from __future__ import annotations

from math import gcd
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from nemotron_style.runtime.config.model import Section
from nemotron_style.runtime.errors import Problem

Architecture = Literal[
    *("llama", "mistral", "qwen2", "qwen3", "olmo2", "phi3"),
    *("gemma", "gemma2", "gemma3", "nemotron"),
]
"""The families, which ``checkpoint/families.py`` describes."""


class RopeScaling(Section):
    """How rotary angles are stretched for rows longer than those a model was first trained on.

    Names and meaning of the keys are Hugging Face's. ``linear`` needs ``factor`` alone, ``llama3``
    its two frequency factors too, ``yarn`` may have the keys of the last group. What depends on
    the length that the model was first trained on needs ``original_max_position_embeddings``.
    """

    rope_type: Literal["linear", "llama3", "yarn"]
    factor: float = Field(gt=0)
    original_max_position_embeddings: int | None = Field(default=None, ge=1)
    low_freq_factor: float | None = Field(default=None, gt=0)
    high_freq_factor: float | None = Field(default=None, gt=0)
    beta_fast: float | None = Field(default=None, gt=0)
    beta_slow: float | None = Field(default=None, gt=0)
    attention_factor: float | None = Field(default=None, gt=0)
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool | None = None

    @model_serializer(mode="wrap")
    def _leave_out_absent(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        return {key: value for key, value in values.items() if value is not None}

    @model_validator(mode="after")
    def _check_keys(self) -> RopeScaling:
        needed, allowed = _ROPE_KEYS[self.rope_type]
        given = set(self.model_dump()) - {"rope_type", "factor"}
        if missing := sorted(needed - given):
            raise ValueError(f"rope_type {self.rope_type} needs {', '.join(missing)}")
        if strange := sorted(given - needed - allowed):
            raise ValueError(f"rope_type {self.rope_type} has no {', '.join(strange)}")
        if (self.high_freq_factor or 1) <= (self.low_freq_factor or 0):
            raise ValueError(
                f"high_freq_factor {self.high_freq_factor} is not above "
                f"low_freq_factor {self.low_freq_factor}"
            )
        return self


_ORIGINAL = "original_max_position_embeddings"
# Keys that a type must have besides its factor, and keys that it may have.
_ROPE_KEYS: dict[str, tuple[set[str], set[str]]] = {
    "linear": (set(), {_ORIGINAL}),
    "llama3": ({_ORIGINAL, "low_freq_factor", "high_freq_factor"}, set()),
    "yarn": (
        {_ORIGINAL},
        {"beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate"},
    ),
}


class ModelConfig(Section):
    """What a decoder computes: its sizes, and where it differs from a plain Llama.

    A plain Llama has RMSNorm before each block, SwiGLU, grouped queries, rotary positions and no
    biases; every switch has that as its default. This is what ``model_config.json`` of a
    checkpoint holds. The limits are far above any model there is: memory is taken by these
    numbers.
    """

    architecture: Architecture = "llama"
    num_layers: int = Field(ge=1, le=10_000)
    hidden_size: int = Field(ge=2, le=2**20)
    ffn_hidden_size: int = Field(ge=1, le=2**24)
    num_attention_heads: int = Field(ge=1, le=2**16)
    num_query_groups: int = Field(ge=1, le=2**16)
    vocab_size: int = Field(ge=1, le=2**26)
    max_sequence_length: int = Field(ge=1, le=2**24)
    rope_theta: float = Field(default=10000.0, gt=0)
    norm_epsilon: float = Field(default=1e-5, gt=0)
    tie_embeddings: bool = False

    kv_channels: int | None = Field(
        default=None, ge=1, le=2**16, description="width of a head; null: hidden size / heads"
    )
    activation: Literal["swiglu", "geglu", "squared_relu"] = Field(
        default="swiglu", description="geglu: GELU by tanh; squared_relu has no gate"
    )
    normalization: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    zero_centered_gamma: bool = Field(default=False, description="norms multiply by weight + 1")
    norm_placement: Literal["pre", "post", "both"] = Field(
        default="pre", description="norms before a block, on its output, or both"
    )
    qkv_bias: bool = False
    qk_norm: Literal["none", "head", "full"] = Field(
        default="none", description="norm of queries and keys, of each head or of all together"
    )
    rotary_percent: float = Field(default=1.0, gt=0, le=1)
    rope_scaling: RopeScaling | None = None
    local_rope_theta: float | None = Field(
        default=None, gt=0, description="base of the rotary angles in layers with a window"
    )
    sliding_window: int | None = Field(
        default=None, ge=1, description="tokens that a token sees, itself among them"
    )
    full_attention_every: int = Field(
        default=0, ge=0, description="every k-th layer, from 1, has no window; 0: all have it"
    )
    query_scale: float | None = Field(
        default=None, gt=0, description="scale of the softmax; null: head size ** -0.5"
    )
    attention_softcap: float | None = Field(default=None, gt=0)
    logit_softcap: float | None = Field(default=None, gt=0)
    embedding_multiplier: float = Field(default=1.0, gt=0)

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.kv_channels or self.hidden_size // self.num_attention_heads

    @property
    def rotary_size(self) -> int:
        """How much of a head is rotated; the rest of it knows no position."""
        return int(self.head_size * self.rotary_percent)

    @property
    def softmax_scale(self) -> float:
        """What products of queries and keys are multiplied by."""
        return self.query_scale or self.head_size**-0.5

    @property
    def is_gated(self) -> bool:
        """Whether the MLP multiplies two projections, so that ``linear_fc1`` has two halves."""
        return self.activation != "squared_relu"

    @property
    def switched(self) -> dict[str, Any]:
        """The switches that are not those of a plain Llama, by name."""
        values = {name: getattr(self, name) for name in SWITCHES}
        return {name: value for name, value in values.items() if value != SWITCHES[name]}

    def window_of(self, layer_number: int) -> int | None:
        """The window of a layer, counted from 1; None where it sees the whole row."""
        every = self.full_attention_every
        return None if every and layer_number % every == 0 else self.sliding_window

    @model_serializer(mode="wrap")
    def _leave_out_plain(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the switches that a plain Llama has: its file is what it was before them."""
        values: dict[str, Any] = dump(self)
        plain = set(SWITCHES) - set(self.switched)
        return {name: value for name, value in values.items() if name not in plain}

    @model_validator(mode="after")
    def _sizes_divide(self) -> ModelConfig:
        if self.kv_channels is None and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is no multiple of "
                f"num_attention_heads {self.num_attention_heads}"
            )
        if self.num_attention_heads % self.num_query_groups:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is no multiple of "
                f"num_query_groups {self.num_query_groups}"
            )
        if self.rotary_size < 2 or self.rotary_size % 2:
            part = "head size" if self.rotary_percent == 1 else "rotated part of a head"
            raise ValueError(f"rotary positions need an even {part}, got {self.rotary_size}")
        return self

    @model_validator(mode="after")
    def _windows_are_used(self) -> ModelConfig:
        if self.sliding_window is None and (self.full_attention_every or self.local_rope_theta):
            raise ValueError("full_attention_every and local_rope_theta need a sliding_window")
        return self


# What a file says even where it is the default, as files did before there were switches.
_SIZES = (
    *("architecture", "num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads"),
    *("num_query_groups", "vocab_size", "max_sequence_length", "rope_theta", "norm_epsilon"),
    "tie_embeddings",
)
SWITCHES = {
    name: field.default for name, field in ModelConfig.model_fields.items() if name not in _SIZES
}
"""Names of the switches and what they are in a plain Llama."""


def find_indivisible(config: ModelConfig, *, tensor: int, pipeline: int) -> list[Problem]:
    """The sizes of a model that these parallel sizes do not divide, and what would do."""
    padded = -(-config.vocab_size // tensor) * tensor
    pad = f"{padded} rows of embeddings would do: make_vocab_size_divisible_by={tensor} adds them, "
    pad += "in model of a conversion, or in model.architecture of a new model"
    shared = gcd(config.num_attention_heads, config.num_query_groups, config.ffn_hidden_size)
    slices = f"divide them over {_list_divisors(shared)} tensor ranks"
    stages = f"divide them over {_list_divisors(config.num_layers)} pipeline stages"
    checks = (
        ("vocab_size", "tensor", tensor, pad),
        ("num_attention_heads", "tensor", tensor, slices),
        ("num_query_groups", "tensor", tensor, slices),
        ("ffn_hidden_size", "tensor", tensor, slices),
        ("num_layers", "pipeline", pipeline, stages),
    )
    return [
        Problem(
            what="the model cannot be divided so",
            key=name,
            got=str(getattr(config, name)),
            allowed=f"a multiple of the {kind} parallel size {size}",
            fix=fix,
        )
        for name, kind, size, fix in checks
        if getattr(config, name) % size
    ]


def _list_divisors(number: int) -> str:
    """``1, 2 or 4``; of a large number the first ones."""
    *most, last = [str(each) for each in range(1, min(number, 512) + 1) if number % each == 0]
    return f"{', '.join(most)} or {last}" if most else last
