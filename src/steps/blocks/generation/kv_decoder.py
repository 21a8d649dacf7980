"""A GPTModel's weights run token by token over keys and values that are kept.

The tensors are those of the model, read anew for every call, so training shows through.
megatron-core's modules are left out of the way, because for one token per row what they do
besides the products costs more than the products.

Rows of one length need neither mask nor index, rows of different lengths need both.

Shape legend: ``_P`` prompts, ``_B`` live rows, ``_K`` key-value heads, ``_Q`` query heads of one
key-value head, ``_T`` tokens, ``_V`` vocabulary, ``_D`` hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nemotron_style.steps.blocks.generation.kv_cache import Cache, Grid, Prefix, Seen
from nemotron_style.steps.blocks.generation.layer_weights import (
    LayerWeights,
    WeightReader,
    whole_model,
)
from nemotron_style.steps.blocks.generation.packed_linear import pack_linear
from nemotron_style.steps.blocks.model.attention import attend_capped
from nemotron_style.steps.blocks.model.parallel import current_parallel
from nemotron_style.steps.blocks.model.rotary import rotary_tables
from nemotron_style.steps.blocks.model.transformer_layer import ACTIVATIONS
from nemotron_style.steps.blocks.settings.model_config import ModelConfig

QUERY_BLOCK = 512
"""Queries whose scores are held at once where scores are capped, which no fused kernel does."""


class Decoder:
    """One model; ``dtype`` computes with copies of its weights in that type.

    Its weights are read by :meth:`read_weights` and by nothing else. Where ranks divide the model,
    that gives every rank a copy of all of them, so all ranks call it.
    """

    def __init__(
        self, model: nn.Module, config: ModelConfig, *, dtype: torch.dtype | None = None
    ) -> None:
        self.model, self.config, self.dtype = model, config, dtype
        self.groups = config.num_query_groups
        self.queries = config.num_attention_heads // config.num_query_groups
        self.activate = ACTIVATIONS[config.activation]

    def read_weights(self, *, rows: int = 32, width: int | None = None) -> None:
        """Name the model's tensors as they are now, for steps of about ``rows`` rows.

        ``width`` is how many tokens a row may have, None as many as the model has positions for.
        On a CPU large weights are copied into the order that products are fastest in.
        """
        gpt = whole_model(self.model)
        reader = WeightReader(self.config, dtype=self.dtype, rows=rows)
        self.embedding = reader.cast(gpt.embedding.word_embeddings.weight)
        tied = self.config.tie_embeddings
        head = self.embedding if tied else reader.cast(gpt.output_layer.weight)
        self.head = pack_linear(head, rows=rows)
        self.final_norm = reader.norm(gpt.decoder, "final_layernorm")
        self.layers = [
            reader.layer(layer, number) for number, layer in enumerate(gpt.decoder.layers, 1)
        ]
        self.windows = {layer.window for layer in self.layers}
        self.device = self.embedding.device
        positions = torch.arange(width or self.config.max_sequence_length, device=self.device)
        self.rotary = {window: self._rotary(positions, window) for window in self.windows}

    def forget_copies(self) -> None:
        """Give back the memory of the copy that a divided model is sampled from."""
        if current_parallel().model > 1:
            self.layers = []
            del self.embedding, self.head

    def _rotary(self, positions: Tensor, window: int | None) -> tuple[Tensor, Tensor]:
        """cos and sin of layers with this window, ``[T, 1, Q + 1, head size]``.

        The Q queries of a head and its key (the last) are rotated in one product. The softmax
        scale goes into the queries here, once.
        """
        tables = rotary_tables(positions, self.config, local=window is not None)
        shape = (len(positions), 1, 1, self.config.rotary_size)
        scales = torch.full((self.queries + 1, 1), self.config.softmax_scale, device=self.device)
        scales[-1] = 1.0
        # the part of a head that knows no position: times one, plus nothing of its partner
        rest = self.config.head_size - self.config.rotary_size
        padded = (
            F.pad(table.view(shape), (0, rest), value=fill)
            for table, fill in zip(tables, (1.0, 0.0), strict=True)
        )
        cos, sin = ((table * scales).to(self.embedding.dtype) for table in padded)
        return cos, sin

    def cache(self, *, prompts: int, slots: int, prompt_width: int, width: int) -> Cache:
        """An empty cache of ``slots`` responses, to at most ``prompts`` prompts at once."""
        heads = len(self.layers), self.groups, self.config.head_size
        widths = prompt_width, width
        return Cache(heads, prompts=prompts, slots=slots, widths=widths, like=self.embedding)

    def prefill(self, tokens_PT: Tensor) -> Prefix:
        """Run prompts of one length; the logits are those of the token that comes next."""
        width = tokens_PT.shape[1]
        hidden_PTD = self._embed(tokens_PT)
        keys, values = [], []
        for layer in self.layers:
            cos, sin = self.rotary[layer.window]
            turned, value = self._project(hidden_PTD, layer, cos[:width], sin[:width])
            query = turned[:, :, :, :-1].flatten(2, 3).transpose(1, 2)
            keys.append(turned[:, :, :, -1].transpose(1, 2))
            values.append(value.transpose(1, 2))
            attended = self._attend_prompt(query, keys[-1], values[-1], layer.window)
            hidden_PTD = self._add_outputs(hidden_PTD, attended.transpose(1, 2).flatten(2), layer)
        return Prefix(torch.stack(keys), torch.stack(values), self._logits(hidden_PTD[:, -1]))

    def advance(self, tokens: Sequence[int], cache: Cache) -> Tensor:
        """Append one token to each live row of the cache; logits_BV of what follows."""
        rows, columns, positions = len(tokens), cache.columns(), cache.positions()
        rotations = {window: self._rotation(positions, window) for window in self.windows}
        seen = {window: cache.seen(window) for window in self.windows}
        hidden_BD = self._embed(torch.tensor(tokens, device=self.device))
        for number, layer in enumerate(self.layers):
            turned, value = self._project(hidden_BD, layer, *rotations[layer.window])
            cache.append(number, columns, turned[:, :, -1], value)
            attended = self._attend(turned[:, :, :-1], seen[layer.window], number, cache.grid)
            hidden_BD = self._add_outputs(hidden_BD, attended.view(rows, -1), layer)
        cache.counts = [count + 1 for count in cache.counts]
        return self._logits(hidden_BD)

    def _attend(self, query: Tensor, seen: Seen, number: int, grid: Grid) -> Tensor:
        """``[B * K, Q, head]``: the query heads of a key-value head share small products.

        A prompt's keys meet the queries of all its responses in one product; a row's own keys
        meet its own. At one token per row that is faster than torch's fused kernels, which are
        made for many.
        """
        heads, own = (self.groups, self.queries), query.flatten(0, 1)
        prompt_keys, prompt_values = seen.prompts[number]
        keys, values = seen.responses[number]
        over_prompt = grid.by_row(torch.bmm(grid.by_prompt(query), prompt_keys), heads)
        over_own = torch.bmm(own, keys).view(*over_prompt.shape[:-1], -1)
        scores = torch.cat([over_prompt, over_own], dim=-1).view(*query.shape[:-1], -1)
        if cap := self.config.attention_softcap:
            scores = scores.div_(cap).tanh_().mul_(cap)
        if seen.mask is not None:
            scores += seen.mask
        shares = scores.softmax(-1, dtype=torch.float32).to(values.dtype)
        width = prompt_keys.shape[-1]
        mixed = torch.bmm(grid.by_prompt(shares[..., :width]), prompt_values)
        mixed = grid.by_row(mixed, heads).reshape(own.shape)
        return torch.baddbmm(mixed, shares[..., width:].flatten(0, 1), values)

    def _attend_prompt(
        self, query: Tensor, key: Tensor, value: Tensor, window: int | None
    ) -> Tensor:
        """``[P, heads, T, head]`` of causal rows, in which a token sees ``window`` tokens."""
        width = query.shape[2]
        if self.config.attention_softcap:
            return self._attend_capped(query, key, value, window)
        mask = None if window is None or width <= window else self._band(0, width, width, window)
        return F.scaled_dot_product_attention(
            *(query, key, value, mask),
            is_causal=mask is None,
            scale=1.0,
            enable_gqa=self.queries > 1,
        )

    def _attend_capped(
        self, query: Tensor, key: Tensor, value: Tensor, window: int | None
    ) -> Tensor:
        """The same with capped scores, which are held for a block of queries at once."""
        width, softcap = query.shape[2], self.config.attention_softcap
        assert softcap
        parts = []
        for begin in range(0, width, QUERY_BLOCK):
            end = min(begin + QUERY_BLOCK, width)
            seen = (states[:, :, :end] for states in (key, value))
            mask = self._band(begin, end, end, window)
            block = query[:, :, begin:end]
            parts.append(attend_capped(block, *seen, mask=mask, scale=1.0, softcap=softcap))
        return torch.cat(parts, dim=2)

    def _band(self, begin: int, end: int, width: int, window: int | None) -> Tensor:
        """Which of ``width`` keys each of the queries from ``begin`` to ``end`` sees."""
        keys = torch.arange(width, device=self.device)
        queries = torch.arange(begin, end, device=self.device)[:, None]
        seen = keys <= queries
        return seen if window is None else seen & (keys > queries - window)

    def _rotation(self, positions: Sequence[int], window: int | None) -> tuple[Tensor, Tensor]:
        """cos and sin of one token at each of ``positions``."""
        cos, sin = self.rotary[window]
        if min(positions) == max(positions):
            return cos[positions[0]], sin[positions[0]]
        at_B = torch.tensor(positions, device=self.device)
        return cos[at_B], sin[at_B]

    def _embed(self, tokens: Tensor) -> Tensor:
        hidden = F.embedding(tokens, self.embedding)
        multiplier = self.config.embedding_multiplier
        if multiplier == 1:
            return hidden
        return hidden * torch.tensor(multiplier).to(hidden.dtype).item()  # as the model rounds it

    def _project(
        self, hidden: Tensor, layer: LayerWeights, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Turned queries (scaled) and key ``[.., K, Q + 1, head]``, and value ``[.., K, head]``.

        Megatron stores, for every key-value head, its query heads, then its key, then its value.
        """
        product = layer.qkv(layer.attention_norm(hidden) if layer.attention_norm else hidden)
        shape = (*hidden.shape[:-1], self.groups, self.queries + 2, self.config.head_size)
        mixed = product.view(shape)
        heads = mixed[..., :-1, :]
        if layer.query_key_norm:
            heads = layer.query_key_norm(heads)
        turned = torch.addcmul(heads * cos, self._partners(heads), sin)
        return turned, mixed[..., -1, :]

    def _partners(self, heads: Tensor) -> Tensor:
        """The number that each is rotated with: half of the rotated part of a head away."""
        size = self.config.rotary_size
        if size == self.config.head_size:
            return heads.roll(size // 2, -1)
        return torch.cat([heads[..., :size].roll(size // 2, -1), heads[..., size:]], dim=-1)

    def _add_outputs(self, hidden: Tensor, attended: Tensor, layer: LayerWeights) -> Tensor:
        """Add the output of attention, then that of the feed-forward network."""
        mixed = layer.attention_out(attended)
        hidden = hidden + (layer.attention_out_norm(mixed) if layer.attention_out_norm else mixed)
        product = layer.fc1(layer.mlp_norm(hidden) if layer.mlp_norm else hidden)
        changed = layer.fc2(self.activate(product))
        return hidden + (layer.mlp_out_norm(changed) if layer.mlp_out_norm else changed)

    def _logits(self, hidden_BD: Tensor) -> Tensor:
        """float32 logits of the real vocabulary: rows that only pad it out are cut off."""
        logits = self.head(self.final_norm(hidden_BD))
        logits = logits[:, : self.config.vocab_size].float()
        cap = self.config.logit_softcap
        return logits if cap is None else (logits / cap).tanh_().mul_(cap)
