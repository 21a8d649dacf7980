"""The sizes of a model; readable without torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from nemotron_style.runtime.config.model import Section


class ModelConfig(Section):
    """The sizes of a Llama: RMSNorm, SwiGLU, grouped queries, rotary positions, no biases.

    This is what ``model_config.json`` of a checkpoint holds. The limits are far above any model
    there is: memory is taken by these numbers.
    """

    architecture: Literal["llama"] = "llama"
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

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @model_validator(mode="after")
    def _sizes_divide(self) -> ModelConfig:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is no multiple of "
                f"num_attention_heads {self.num_attention_heads}"
            )
        if self.num_attention_heads % self.num_query_groups:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is no multiple of "
                f"num_query_groups {self.num_query_groups}"
            )
        if self.head_size % 2:
            raise ValueError(f"rotary positions need an even head size, got {self.head_size}")
        return self
