"""A decoder built from megatron-core's GPTModel, one code for CPU and CUDA, any division.

The model is called with a :class:`PackedBatch` and gives the log-probs of its response tokens,
so it can stand in megatron-core's pipeline schedules as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.distributed.finalize_model_grads import finalize_model_grads
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.tensor_parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    set_tensor_model_parallel_attributes,
)
from torch import Tensor, nn

from nemotron_style.runtime.errors import InputError, raise_all
from nemotron_style.steps.blocks.model.attention import AttentionContext
from nemotron_style.steps.blocks.model.device import prepare_device
from nemotron_style.steps.blocks.model.linear import linear
from nemotron_style.steps.blocks.model.logprob import chunked_logprobs
from nemotron_style.steps.blocks.model.megatron_config import megatron_config
from nemotron_style.steps.blocks.model.parallel import current_parallel, data_world
from nemotron_style.steps.blocks.model.prefix_packing import PackedBatch
from nemotron_style.steps.blocks.model.sharded_tensor import name_generator, shards
from nemotron_style.steps.blocks.model.transformer_layer import block_spec
from nemotron_style.steps.blocks.settings.model_config import ModelConfig, find_indivisible
from nemotron_style.steps.blocks.settings.parallel_config import (
    ALIGNER_KEYS,
    KEEP_ALL,
    Activations,
)

INITIAL_STD = 0.02
Model = TypeVar("Model", bound="LanguageModel")


class LanguageModel(GPTModel):
    """GPTModel that reads packed batches; every pipeline stage calls it with the same batch."""

    def forward(self, packed: PackedBatch, *, temperature: float = 1.0) -> Tensor:
        """Log-probs ``[B, N, R]`` in float32 (0 where masked); hidden states before the last stage.

        The output head runs on the states that predict response tokens, and on no others.
        """
        states = self.hidden(packed)
        if not self.post_process:
            return states
        chosen = states.flatten(0, 1).index_select(0, packed.predictors_T)
        logprobs_T = chunked_logprobs(
            *(self.head, chosen, packed.labels_T),
            vocabulary=self.vocab_size // self.config.tensor_model_parallel_size,
            temperature=temperature,
        )
        zeros = logprobs_T.new_zeros(packed.mask_BNR.numel())
        return zeros.index_copy(0, packed.spots_T, logprobs_T).view(packed.mask_BNR.shape)

    def hidden(self, packed: PackedBatch) -> Tensor:
        """Final hidden states ``[S, B, hidden]`` (those of this stage before the last one)."""
        config = self.config.model
        context = AttentionContext(packed.layout, positions=packed.positions_BS, config=config)
        tokens_BS = packed.tokens_BS
        width = tokens_BS.shape[1]
        if self.config.sequence_parallel:  # ranks keep parts of equal length
            tokens_BS = F.pad(tokens_BS, (0, -width % self.config.tensor_model_parallel_size))
        embedded = None
        if self.pre_process:
            embedded = self.embedding(input_ids=tokens_BS, position_ids=None)
            if config.embedding_multiplier != 1.0:
                # Hugging Face rounds the factor to the type of the weights first.
                factor = torch.tensor(config.embedding_multiplier).to(embedded.dtype)
                embedded = embedded * factor.item()
            if self.config.recompute_granularity and not embedded.requires_grad:
                # Else a frozen embedding would end the backward pass before it recomputes a layer.
                embedded.requires_grad_()
        states = self.decoder(
            hidden_states=embedded, attention_mask=None, packed_seq_params=context
        )
        if self.config.sequence_parallel and self.post_process:
            # Every rank gives the whole gradient of its states: none has to be summed.
            states = gather_from_sequence_parallel_region(
                states, tensor_parallel_output_grad=False
            )[:width]
        return states

    def head(self, states: Tensor) -> Tensor:
        """Logits ``[.., vocabulary / tensor ranks]`` of states ``[.., hidden]``, capped if so."""
        logits = self._project(states)
        cap = self.config.model.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def _project(self, states: Tensor) -> Tensor:
        shared = self.share_embeddings_and_output_weights
        weight = self.shared_embedding_or_output_weight() if shared else None
        if self.output_layer.tp_group.size() > 1:
            return self.output_layer(states, weight=weight)[0]
        return linear(states, self.output_layer.weight if weight is None else weight)


def build_model(
    config: ModelConfig,
    *,
    seed: int = 1234,
    dtype: torch.dtype = torch.float32,
    ddp: bool = True,
    initial: float | None = INITIAL_STD,
    distributed_optimizer: bool = False,
    activations: Activations = KEEP_ALL,
) -> nn.Module:
    """This rank's part of the model, wrapped in megatron-core's DDP unless ``ddp`` is off.

    Weights are sampled per tensor from ``seed`` and the tensor's name, so they are the same for
    every division; ``initial`` is their standard deviation, None leaves them to be loaded.
    ``distributed_optimizer`` (CUDA) spreads optimizer state over data ranks.
    Raises InputError when the sizes cannot be divided by the parallel sizes in force, or
    ``activations`` do not fit them.
    """
    model = construct(LanguageModel, config, dtype=dtype, activations=activations)
    if initial:
        initialise(model, num_layers=config.num_layers, seed=seed, std=initial)
    model.to(device=prepare_device(), dtype=dtype)
    return wrap(model, distributed_optimizer=distributed_optimizer) if ddp else model


def construct(
    kind: Callable[..., Model],
    config: ModelConfig,
    *,
    dtype: torch.dtype,
    activations: Activations = KEEP_ALL,
    **more: Any,
) -> Model:
    """This rank's part of a model of class ``kind``, before its weights are drawn or loaded.

    ``more`` goes to the class. Raises InputError as :func:`build_model` does.
    """
    prepare_device()
    parallel = current_parallel()
    problems = find_indivisible(config, tensor=parallel.tensor, pipeline=parallel.pipeline)
    raise_all(InputError, problems)
    layers = config.num_layers // parallel.pipeline
    problems = [
        *activations.find_problems(layers=layers, tensor=parallel.tensor, keys=ALIGNER_KEYS)
    ]
    raise_all(InputError, problems)
    settings = megatron_config(config, parallel=parallel, dtype=dtype, activations=activations)
    settings.finalize_model_grads_func = finish_gradients
    model = kind(
        settings,
        block_spec(settings, layers=layers),
        vocab_size=config.vocab_size,
        max_sequence_length=config.max_sequence_length,
        position_embedding_type="none",
        rotary_base=config.rope_theta,
        share_embeddings_and_output_weights=config.tie_embeddings,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        **more,
    )
    _mark_divided(model)
    return model


def wrap(model: LanguageModel, *, distributed_optimizer: bool = False) -> DistributedDataParallel:
    """Put megatron-core's DDP around a model whose trainable parameters are final.

    Gradients of all micro-batches add up in ``parameter.main_grad``, in float32 where the
    parameters are 16 bit wide.
    """
    dtype = model.config.params_dtype
    wrapped = DistributedDataParallel(
        model.config,
        DistributedDataParallelConfig(
            grad_reduce_in_fp32=dtype in (torch.bfloat16, torch.float16),
            use_distributed_optimizer=distributed_optimizer and torch.cuda.is_available(),
        ),
        model,
    )
    model.config.no_sync_func = wrapped.no_sync
    return wrapped


def unwrap(model: nn.Module) -> LanguageModel:
    """The LanguageModel inside DDP."""
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    assert isinstance(inner, LanguageModel)
    return inner


def finish_gradients(models: list[nn.Module], *args: Any, **kwargs: Any) -> None:
    """Sum gradients where ranks hold parts of one: of data ranks, of the two ends of the pipeline,
    and of tensor ranks for the norms of queries and keys, which see the heads of their rank, and
    for what sees the tokens of its rank (sequence parallel)."""
    parallel, config = current_parallel(), models[0].config
    split_norms = parallel.tensor > 1 and (config.qk_layernorm or config.sequence_parallel)
    if data_world() * parallel.pipeline > 1 or split_norms:
        finalize_model_grads(models, *args, **kwargs)


@torch.no_grad()
def initialise(model: LanguageModel, *, num_layers: int, seed: int, std: float) -> None:
    """Sample every weight from a normal distribution of deviation ``std``; biases are zeros.

    Norms multiply by one. Matrices that write into the residual stream get
    ``std / sqrt(2 * num_layers)``. A slice of a divided tensor is cut from the whole one.
    """
    gain = 0.0 if model.config.model.zero_centered_gamma else 1.0
    for shard in shards(model):
        if len(shard.full_shape) == 1:
            shard.data.fill_(0.0 if shard.name.endswith("bias") else gain)
            continue
        whole = torch.randn(shard.full_shape, generator=name_generator(seed, shard.name))
        residual = shard.name.endswith(("linear_proj.weight", "linear_fc2.weight"))
        own = std / (2 * num_layers) ** 0.5 if residual else std
        shard.data.copy_(whole[shard.slices] * own)


def _mark_divided(model: LanguageModel) -> None:
    """Say which weights are slices; megatron-core does so while it initialises, which is off."""
    if model.config.sequence_parallel:
        for name, parameter in model.named_parameters():
            # the norms of queries and keys see whole rows
            parameter.sequence_parallel = "layernorm" in name and "self_attention" not in name
        if model.post_process and hasattr(model, "output_layer"):
            # It is given whole rows, of which only the states that predict a response.
            model.output_layer.sequence_parallel = False
            model.output_layer.allreduce_dgrad = True
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, ColumnParallelLinear | VocabParallelEmbedding) and weight is not None:
            set_tensor_model_parallel_attributes(weight, is_parallel=True, dim=0, stride=1)
        elif isinstance(module, RowParallelLinear):
            set_tensor_model_parallel_attributes(weight, is_parallel=True, dim=1, stride=1)
