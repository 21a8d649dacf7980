"""megatron-core's settings of a model, which carry the model's own config to every layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig

from nemotron_style.steps.blocks.model.parallel import Parallel
from nemotron_style.steps.blocks.settings.model_config import ModelConfig
from nemotron_style.steps.blocks.settings.parallel_config import KEEP_ALL, Activations


@dataclass
class MegatronConfig(TransformerConfig):
    """megatron-core's settings; ``model`` is what they were made from."""

    model: ModelConfig = None  # type: ignore[assignment]


def megatron_config(
    config: ModelConfig,
    *,
    parallel: Parallel,
    dtype: torch.dtype,
    activations: Activations = KEEP_ALL,
) -> MegatronConfig:
    """megatron-core's settings for ``config``; every fusion that needs CUDA kernels is off."""
    method = activations.recompute_method
    return MegatronConfig(
        model=config,
        num_layers=config.num_layers,
        hidden_size=config.hidden_size,
        ffn_hidden_size=config.ffn_hidden_size,
        num_attention_heads=config.num_attention_heads,
        num_query_groups=config.num_query_groups,
        kv_channels=config.head_size,
        layernorm_epsilon=config.norm_epsilon,
        normalization="RMSNorm" if config.normalization == "rmsnorm" else "LayerNorm",
        gated_linear_unit=config.is_gated,
        activation_func=F.silu,  # not called: transformer_layer.ACTIVATIONS are
        add_bias_linear=False,
        add_qkv_bias=config.qkv_bias,
        # With it megatron-core sums the gradients of these norms over tensor ranks, each of which
        # sees its own heads. Those of a full norm are slices, which nothing is summed with.
        qk_layernorm=config.qk_norm == "head",
        hidden_dropout=0.0,
        attention_dropout=0.0,
        recompute_granularity="full" if method else None,
        recompute_method=method,
        recompute_num_layers=activations.recompute_num_layers if method else None,
        sequence_parallel=activations.sequence_parallel,
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        # micro-batches of different widths may follow one another through the pipeline
        variable_seq_lengths=parallel.pipeline > 1,
        moe_token_dispatcher_type="alltoall",  # unused; the default one forbids the line above
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype is torch.bfloat16,
        use_cpu_initialization=True,
        perform_initialization=False,
        bias_dropout_fusion=False,
        bias_activation_fusion=False,
        masked_softmax_fusion=False,
        apply_rope_fusion=False,
        gradient_accumulation_fusion=False,
        persist_layer_norm=False,
        cuda_graph_scope=[],
    )
