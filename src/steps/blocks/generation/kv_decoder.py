"""A GPTModel's weights run token by token over keys and values that are kept.

The tensors are those of the model, read anew for every call, so training shows through.
megatron-core's modules are left out of the way, because for one token per row what they do
besides the products costs more than the products.

Every row of a :class:`Cache` is a slot. Live rows are the first slots, so a step works on views;
rows of one length need neither mask nor index, rows of different lengths need both.

Shape legend: ``_P`` prompts, ``_B`` live rows, ``_K`` key-value heads, ``_Q`` query heads of one
key-value head, ``_T`` tokens, ``_V`` vocabulary, ``_D`` hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nemotron_style.runtime.errors import InputError, Problem
from nemotron_style.steps.blocks.generation.packed_linear import PackedLinear, pack_linear
from nemotron_style.steps.blocks.model.language_model import unwrap
from nemotron_style.steps.blocks.model.parallel import current_parallel
from nemotron_style.steps.blocks.model.rotary import rotary_tables
from nemotron_style.steps.blocks.settings.model_config import ModelConfig


@dataclass(frozen=True)
class _Layer:
    """The weights of one transformer layer, by what they do."""

    attention_norm: Tensor
    qkv: PackedLinear
    attention_out: PackedLinear
    mlp_norm: Tensor
    gate_up: PackedLinear
    down: PackedLinear


@dataclass(frozen=True)
class _Target:
    """Where in the cache the new token of each live row goes, by key-value head (``[B * K]``).

    ``cos`` and ``sin`` rotate it. ``mask`` hides the columns beyond a row's own length; None where
    all rows have one length.
    """

    heads: slice | Tensor
    columns: int | Tensor
    cos: Tensor
    sin: Tensor
    mask: Tensor | None


@dataclass(frozen=True)
class Prefix:
    """Prompts of one length, computed once: keys and values ``[layers, P, K, T, head size]``."""

    keys: Tensor
    values: Tensor
    logits_PV: Tensor

    def one(self, number: int) -> Prefix:
        """The prompt ``number`` alone."""
        here = slice(number, number + 1)
        return Prefix(self.keys[:, here], self.values[:, here], self.logits_PV[here])


class Cache:
    """Keys ``[layers, slots, K, head size, T]`` and values ``[layers, slots, K, T, head size]``.

    Keys are stored transposed, as the product with a query reads them.
    """

    def __init__(self, shape: tuple[int, ...], like: Tensor) -> None:
        # Zeros: a masked column is still multiplied by its weight of 0, and 0 * nan is nan.
        self.values = like.new_zeros(shape)
        self.keys = like.new_zeros((*shape[:3], shape[4], shape[3]))
        by_head = (states.flatten(1, 2).unbind() for states in (self.keys, self.values))
        self.layers = list(zip(*by_head, strict=True))

    def start(self, prefix: Prefix, slots: slice) -> None:
        """Begin ``slots`` with the one prompt of ``prefix``."""
        width = prefix.keys.shape[3]
        self.keys[:, slots, :, :, :width] = prefix.keys.transpose(3, 4)
        self.values[:, slots, :, :width] = prefix.values

    def move(self, source: int, target: int, width: int) -> None:
        """Put the first ``width`` tokens of one slot in the place of another slot."""
        self.keys[:, target, :, :, :width] = self.keys[:, source, :, :, :width]
        self.values[:, target, :, :width] = self.values[:, source, :, :width]


class Decoder:
    """One model; ``dtype`` computes with copies of its weights in that type.

    The model must be whole on this rank (tensor and pipeline parallel size 1). Its weights are
    read by :meth:`read_weights` and by nothing else.
    """

    def __init__(
        self, model: nn.Module, config: ModelConfig, *, dtype: torch.dtype | None = None
    ) -> None:
        assert current_parallel().model == 1, "a divided model cannot be sampled in one process"
        if config.switched:
            what = "sampling in process does not know these switches of the model yet"
            raise InputError(Problem(what=what, got=", ".join(config.switched)))
        self.model, self.config, self.dtype = model, config, dtype
        self.groups = config.num_query_groups
        self.queries = config.num_attention_heads // config.num_query_groups

    def read_weights(self, *, rows: int = 32) -> None:
        """Name the model's tensors as they are now, for steps of about ``rows`` rows.

        On a CPU large weights are copied into the order that products are fastest in.
        """
        gpt = unwrap(self.model)
        self.embedding = self._read(gpt.embedding.word_embeddings)
        tied = self.config.tie_embeddings
        head = self.embedding if tied else self._read(gpt.output_layer)
        self.head = pack_linear(head, rows=rows)
        self.final_norm = self._read(gpt.decoder.final_layernorm)
        self.layers = [self._read_layer(layer, rows) for layer in gpt.decoder.layers]
        self.device = self.embedding.device
        positions = torch.arange(self.config.max_sequence_length, device=self.device)
        tables = rotary_tables(positions, self.config)
        # Broadcast over [T, K, Q + 1, head size]: the Q queries of a head and its key (the last)
        # are rotated in one product. The softmax scale goes into the queries here, once.
        shape = (len(positions), 1, 1, self.config.head_size)
        scales = torch.full((self.queries + 1, 1), self.config.head_size**-0.5, device=self.device)
        scales[-1] = 1.0
        self.cos, self.sin = (
            (table.view(shape) * scales).to(self.embedding.dtype) for table in tables
        )

    def cache(self, slots: int, width: int) -> Cache:
        """An empty cache of ``slots`` rows with room for ``width`` tokens each."""
        shape = (len(self.layers), slots, self.groups, width, self.config.head_size)
        return Cache(shape, self.embedding)

    def prefill(self, tokens_PT: Tensor) -> Prefix:
        """Run prompts of one length; the logits are those of the token that comes next."""
        width = tokens_PT.shape[1]
        hidden_PTD = F.embedding(tokens_PT, self.embedding)
        keys, values = [], []
        for layer in self.layers:
            turned, value = self._project(hidden_PTD, layer, self.cos[:width], self.sin[:width])
            query = turned[:, :, :, :-1].flatten(2, 3).transpose(1, 2)
            keys.append(turned[:, :, :, -1].transpose(1, 2))
            values.append(value.transpose(1, 2))
            attended = F.scaled_dot_product_attention(
                query, keys[-1], values[-1], is_causal=True, scale=1.0, enable_gqa=self.queries > 1
            )
            hidden_PTD = self._add_outputs(hidden_PTD, attended.transpose(1, 2).flatten(2), layer)
        return Prefix(torch.stack(keys), torch.stack(values), self._logits(hidden_PTD[:, -1]))

    def advance(self, tokens: Sequence[int], lengths: Sequence[int], cache: Cache) -> Tensor:
        """Append one token to each of the first slots, at ``lengths``; logits_BV that follow."""
        rows, seen = len(tokens), max(lengths) + 1
        target = self._target(lengths)
        heads = slice(rows * self.groups)
        hidden_BD = F.embedding(torch.tensor(tokens, device=self.device), self.embedding)
        for layer, (keys, values) in zip(self.layers, cache.layers, strict=True):
            turned, value = self._project(hidden_BD, layer, target.cos, target.sin)
            # in place: the cache never moves, so a step allocates nothing of its size
            keys[target.heads, :, target.columns] = turned[:, :, -1].flatten(0, 1)
            values[target.heads, target.columns] = value.flatten(0, 1)
            attended = self._attend(
                turned[:, :, :-1].flatten(0, 1),
                keys[heads, :, :seen],
                values[heads, :seen],
                target.mask,
            )
            hidden_BD = self._add_outputs(hidden_BD, attended.view(rows, -1), layer)
        return self._logits(hidden_BD)

    @staticmethod
    def _attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """``[B * K, Q, head]``: the query heads of a key-value head share two small products.

        At one token per row this is faster than torch's fused kernels, which are made for many.
        """
        scores = torch.bmm(query, keys) if mask is None else torch.baddbmm(mask, query, keys)
        shares = scores.softmax(-1, dtype=torch.float32).to(values.dtype)
        return torch.bmm(shares, values)

    def _target(self, lengths: Sequence[int]) -> _Target:
        """The target of tokens at the positions ``lengths`` of their rows."""
        first, last = min(lengths), max(lengths)
        heads = slice(len(lengths) * self.groups)
        if first == last:
            return _Target(heads, last, self.cos[last], self.sin[last], None)
        lengths_B = torch.tensor(lengths, device=self.device)
        columns = lengths_B.repeat_interleave(self.groups)
        hidden = torch.arange(last + 1, device=self.device) > columns[:, None]
        mask = torch.zeros(hidden.shape, dtype=self.embedding.dtype, device=self.device)
        return _Target(
            heads=torch.arange(len(columns), device=self.device),
            columns=columns,
            cos=self.cos[lengths_B],
            sin=self.sin[lengths_B],
            mask=mask.masked_fill_(hidden, -torch.inf)[:, None],
        )

    def _project(
        self, hidden: Tensor, layer: _Layer, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Turned queries (scaled) and key ``[.., K, Q + 1, head]``, and value ``[.., K, head]``.

        Megatron stores, for every key-value head, its query heads, then its key, then its value.
        """
        product = layer.qkv(self._norm(hidden, layer.attention_norm))
        shape = (*hidden.shape[:-1], self.groups, self.queries + 2, self.config.head_size)
        mixed = product.view(shape)
        heads = mixed[..., :-1, :]
        turned = torch.addcmul(heads * cos, heads.roll(self.config.head_size // 2, -1), sin)
        return turned, mixed[..., -1, :]

    def _add_outputs(self, hidden: Tensor, attended: Tensor, layer: _Layer) -> Tensor:
        """Add the output of attention, then that of the feed-forward network."""
        hidden = hidden + layer.attention_out(attended)
        product = layer.gate_up(self._norm(hidden, layer.mlp_norm))
        gate, up = product.chunk(2, dim=-1)
        return hidden + layer.down(F.silu(gate).mul_(up))

    def _norm(self, hidden: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(hidden, weight.shape, weight, self.config.norm_epsilon)

    def _logits(self, hidden_BD: Tensor) -> Tensor:
        """float32 logits of the real vocabulary: rows that only pad it out are cut off."""
        logits = self.head(self._norm(hidden_BD, self.final_norm))
        return logits[:, : self.config.vocab_size].float()

    def _read(self, module: nn.Module) -> Tensor:
        weight = module.weight.detach()
        return weight.to(self.dtype or weight.dtype)

    def _read_layer(self, layer: nn.Module, rows: int) -> _Layer:
        return _Layer(
            attention_norm=self._read(layer.input_layernorm),
            qkv=pack_linear(self._read(layer.self_attention.linear_qkv), rows=rows),
            attention_out=pack_linear(self._read(layer.self_attention.linear_proj), rows=rows),
            mlp_norm=self._read(layer.pre_mlp_layernorm),
            gate_up=pack_linear(self._read(layer.mlp.linear_fc1), rows=rows),
            down=pack_linear(self._read(layer.mlp.linear_fc2), rows=rows),
        )
