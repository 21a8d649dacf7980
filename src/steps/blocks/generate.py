"""Sampling from a model in the training process: prompts in, responses with log-probs out.

The engine reads the weights of a GPTModel in place, so what is sampled is always what is being
trained, and nothing is converted. One prefill serves all samples of a prompt; the keys and values
of a batch live in two tensors made once. Prompts of equal length share a batch, hence there is no
padding and no mask. The model must be whole on this rank (tensor and pipeline parallel size 1).

Shape legend: ``_P`` prompts of a batch, ``_G`` samples of a prompt, ``_B`` rows (P x G),
``_K`` key-value heads, ``_Q`` query heads of one key-value head, ``_T`` tokens, ``_V`` vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nemotron_style.runtime.errors import InputError, Problem, StepFailed
from nemotron_style.steps.blocks.architecture import ModelConfig
from nemotron_style.steps.blocks.attention import rotary_tables
from nemotron_style.steps.blocks.draw import choose, sample_keys
from nemotron_style.steps.blocks.model import unwrap
from nemotron_style.steps.blocks.parallel import current


@dataclass(frozen=True)
class Sample:
    """One response: ``tokens`` end with the stop token when it ``finished``.

    ``logprob`` is the sum over ``tokens`` of their log-probs under the model at temperature 1,
    whatever temperature they were drawn at.
    """

    tokens: list[int]
    logprob: float
    finished: bool


@dataclass(frozen=True)
class _Layer:
    """The weights of one transformer layer, by what they do."""

    attention_norm: Tensor
    qkv: Tensor
    attention_out: Tensor
    mlp_norm: Tensor
    gate_up: Tensor
    down: Tensor


class _Cache:
    """Keys and values of every row and layer, [layers, B, K, T, head size]."""

    def __init__(self, shape: tuple[int, ...], like: Tensor) -> None:
        self.keys = like.new_empty(shape)
        self.values = like.new_empty(shape)

    def keep(self, rows: Tensor) -> None:
        """Forget every row but these."""
        self.keys = self.keys[:, rows]
        self.values = self.values[:, rows]


class Engine:
    """Draws responses from a model that is held for training or scoring.

    ``max_rows`` bounds the responses decoded side by side, and with them the memory of the cache.
    """

    def __init__(self, model: nn.Module, config: ModelConfig, *, max_rows: int = 512) -> None:
        assert current().model == 1, "a divided model cannot be sampled in one process"
        self.model = model
        self.config = config
        self.max_rows = max_rows
        self.groups = config.num_query_groups
        self.queries = config.num_attention_heads // config.num_query_groups
        self._read_weights()

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        samples_per_prompt: int,
        max_new_tokens: int,
        temperature: float = 1.0,
        stop_ids: Collection[int],
        seed: int | Sequence[int],
    ) -> list[list[Sample]]:
        """``samples_per_prompt`` responses to each of ``prompts``, in their order.

        Every sample has a random stream of its own, named by the seed of its prompt and its number
        in the group: one ``seed`` gives prompt i a stream by its position, a list names one seed
        per prompt. So a response does not depend on what else is in the batch (to the rounding of
        the matrix product). Temperature 0 takes the likeliest token, the smallest id on a tie.
        Raises InputError when a prompt and its response cannot fit the model.
        """
        self._refuse_unfit(prompts, max_new_tokens)
        self._read_weights()
        keys = sample_keys(seed, len(prompts), samples_per_prompt)
        stops = torch.tensor(sorted(stop_ids), dtype=torch.long, device=self.device)
        answers: list[list[Sample]] = [[] for _ in prompts]
        for members in self._batches(prompts, samples_per_prompt):
            tokens_PT = torch.tensor([list(prompts[i]) for i in members], device=self.device)
            decoding = _Decoding(keys[members].flatten().to(self.device), max_new_tokens, stops)
            cache = self._cache(len(members) * samples_per_prompt, tokens_PT, max_new_tokens)
            self._decode(tokens_PT, cache, decoding, temperature)
            for position, sample in enumerate(decoding.samples()):
                answers[members[position // samples_per_prompt]].append(sample)
        return answers

    def _decode(
        self, tokens_PT: Tensor, cache: _Cache, decoding: _Decoding, temperature: float
    ) -> None:
        """Fill ``decoding`` token by token until every row has stopped or is full."""
        logits_BV = self._prefill(tokens_PT, cache)
        for position in range(tokens_PT.shape[1], cache.keys.shape[3] + 1):
            going_on = decoding.take(logits_BV, temperature)
            if decoding.done:
                return
            if going_on is not None:
                cache.keep(going_on)
            logits_BV = self._advance(decoding.last_tokens, position, cache)

    def _prefill(self, tokens_PT: Tensor, cache: _Cache) -> Tensor:
        """Run the prompts once, store keys and values for all their samples; logits_BV."""
        prompts, width = tokens_PT.shape
        repeat = cache.keys.shape[1] // prompts
        hidden = F.embedding(tokens_PT, self.embedding)
        for index, layer in enumerate(self.layers):
            query, key, value = self._project(hidden, layer)
            query, key = self._rotate(query, slice(width)), self._rotate(key, slice(width))
            query, key, value = (_heads_first(part) for part in (query, key, value))
            cache.keys[index, :, :, :width] = key.repeat_interleave(repeat, 0)
            cache.values[index, :, :, :width] = value.repeat_interleave(repeat, 0)
            attended = F.scaled_dot_product_attention(
                query, key, value, is_causal=True, enable_gqa=True
            )
            hidden = self._finish_layer(hidden, attended.transpose(1, 2), layer)
        return self._logits(hidden[:, -1]).repeat_interleave(repeat, 0)

    def _advance(self, tokens_B: Tensor, position: int, cache: _Cache) -> Tensor:
        """Append one token to every row at ``position``; logits_BV of the next one."""
        hidden = F.embedding(tokens_B[:, None], self.embedding)
        here, seen = slice(position, position + 1), slice(position + 1)
        for index, layer in enumerate(self.layers):
            query, key, value = self._project(hidden, layer)
            cache.keys[index, :, :, position] = self._rotate(key, here)[:, 0, :, 0]
            cache.values[index, :, :, position] = value[:, 0, :, 0]
            # The query heads of a key-value head stand in the place of query positions.
            attended = F.scaled_dot_product_attention(
                self._rotate(query, here)[:, 0],
                cache.keys[index, :, :, seen],
                cache.values[index, :, :, seen],
            )
            hidden = self._finish_layer(hidden, attended, layer)
        return self._logits(hidden[:, 0])

    def _project(self, hidden_BTD: Tensor, layer: _Layer) -> tuple[Tensor, Tensor, Tensor]:
        """Query [B,T,K,Q,head], key and value [B,T,K,1,head] before rotation.

        Megatron stores, for every key-value head, its query heads, then its key, then its value.
        """
        normed = self._norm(hidden_BTD, layer.attention_norm)
        shape = (*hidden_BTD.shape[:2], self.groups, self.queries + 2, self.config.head_size)
        mixed = F.linear(normed, layer.qkv).view(shape)
        query, key, value = mixed.split([self.queries, 1, 1], dim=3)
        return query, key, value

    def _finish_layer(self, hidden_BTD: Tensor, attended: Tensor, layer: _Layer) -> Tensor:
        """Add the output of attention, then that of the feed-forward network."""
        flat = attended.reshape(*hidden_BTD.shape[:2], -1)
        hidden = hidden_BTD + F.linear(flat, layer.attention_out)
        gate, up = F.linear(self._norm(hidden, layer.mlp_norm), layer.gate_up).chunk(2, dim=-1)
        return hidden + F.linear(F.silu(gate) * up, layer.down)

    def _rotate(self, heads: Tensor, where: slice) -> Tensor:
        """Rotary embedding of [B,T,K,n,head] for the positions ``where``."""
        swapped = heads.roll(self.config.head_size // 2, -1)
        return torch.addcmul(heads * self.cos[where], swapped, self.sin[where])

    def _norm(self, hidden: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(hidden, weight.shape, weight, self.config.norm_epsilon)

    def _logits(self, hidden_BD: Tensor) -> Tensor:
        """float32 logits of the real vocabulary: rows that only pad it out are cut off."""
        logits = F.linear(self._norm(hidden_BD, self.final_norm), self.head)
        return logits[:, : self.config.vocab_size].float()

    def _read_weights(self) -> None:
        """Name the model's tensors; they are views, so training goes on showing through."""
        gpt = unwrap(self.model)
        self.embedding = gpt.embedding.word_embeddings.weight.detach()
        tied = self.config.tie_embeddings
        self.head = self.embedding if tied else gpt.output_layer.weight.detach()
        self.final_norm = gpt.decoder.final_layernorm.weight.detach()
        self.layers = [_layer_weights(layer) for layer in gpt.decoder.layers]
        self.device = self.embedding.device
        positions = torch.arange(self.config.max_sequence_length, device=self.device)
        tables = rotary_tables(
            positions, head_size=self.config.head_size, theta=self.config.rope_theta
        )
        shape = (len(positions), 1, 1, self.config.head_size)  # over [T, K, n, head size]
        self.cos, self.sin = (table.to(self.embedding.dtype).view(shape) for table in tables)

    def _cache(self, rows: int, tokens_PT: Tensor, max_new_tokens: int) -> _Cache:
        # The last token of a row is never fed back, so it needs no place.
        width = tokens_PT.shape[1] + max_new_tokens - 1
        shape = (len(self.layers), rows, self.groups, width, self.config.head_size)
        return _Cache(shape, self.embedding)

    def _batches(self, prompts: Sequence[Sequence[int]], samples: int) -> Iterator[list[int]]:
        """Indices of prompts of one length, as many as ``max_rows`` has room for."""
        by_length: dict[int, list[int]] = defaultdict(list)
        for index, prompt in enumerate(prompts):
            by_length[len(prompt)].append(index)
        size = max(1, self.max_rows // samples)
        for length in sorted(by_length):
            members = by_length[length]
            for start in range(0, len(members), size):
                yield members[start : start + size]

    def _refuse_unfit(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        longest = max((len(prompt) for prompt in prompts), default=1)
        room = self.config.max_sequence_length
        if longest + max_new_tokens > room:
            raise InputError(
                Problem(
                    what="prompt and response do not fit the model",
                    got=f"{longest} prompt tokens + {max_new_tokens} new ones",
                    allowed=f"max_sequence_length {room}",
                    fix="shorten the prompts or max_new_tokens",
                )
            )
        if any(len(prompt) == 0 for prompt in prompts):
            raise InputError("a prompt without tokens cannot be continued")


class _Decoding:
    """What the rows of one batch have said so far. Rows that stopped leave the batch."""

    def __init__(self, keys_B: Tensor, max_new_tokens: int, stops: Tensor) -> None:
        rows = len(keys_B)
        self.keys = keys_B
        self.stops = stops
        self.rows = torch.arange(rows, device=keys_B.device)
        self.tokens_BT = torch.zeros(rows, max_new_tokens, dtype=torch.long, device=keys_B.device)
        self.lengths_B = torch.zeros(rows, dtype=torch.long, device=keys_B.device)
        self.logprobs_B = torch.zeros(rows, dtype=torch.float64, device=keys_B.device)
        self.finished_B = torch.zeros(rows, dtype=torch.bool, device=keys_B.device)
        self.count = 0

    @property
    def done(self) -> bool:
        """Every row has stopped, or the room for new tokens is used up."""
        return len(self.rows) == 0 or self.count == self.tokens_BT.shape[1]

    def take(self, logits_BV: Tensor, temperature: float) -> Tensor | None:
        """Draw a token for every live row; which of them go on, or None when all do."""
        tokens = choose(logits_BV, self.keys[self.rows], self.count, temperature=temperature)
        logprobs = torch.log_softmax(logits_BV, -1).gather(1, tokens[:, None])[:, 0]
        self.tokens_BT[self.rows, self.count] = tokens
        self.logprobs_B[self.rows] += logprobs.double()
        self.count += 1
        self.lengths_B[self.rows] = self.count
        stopped = torch.isin(tokens, self.stops)
        self.finished_B[self.rows] = stopped
        self.last_tokens = tokens
        if not stopped.any():
            return None
        going_on = (~stopped).nonzero()[:, 0]
        self.rows = self.rows[going_on]
        self.last_tokens = tokens[going_on]
        return going_on

    def samples(self) -> Iterator[Sample]:
        """The rows as they were given; StepFailed when the model's logits were no numbers."""
        if not self.logprobs_B.isfinite().all():
            raise StepFailed("the model gave logits that are not finite: its weights are broken")
        tokens, lengths = self.tokens_BT.tolist(), self.lengths_B.tolist()
        logprobs, finished = self.logprobs_B.tolist(), self.finished_B.tolist()
        for row, length in enumerate(lengths):
            yield Sample(tokens[row][:length], logprobs[row], finished[row])


def _heads_first(heads: Tensor) -> Tensor:
    """[P,T,K,n,head] -> [P,K*n,T,head], as attention wants it."""
    return heads.flatten(2, 3).transpose(1, 2)


def _layer_weights(layer: nn.Module) -> _Layer:
    return _Layer(
        attention_norm=layer.input_layernorm.weight.detach(),
        qkv=layer.self_attention.linear_qkv.weight.detach(),
        attention_out=layer.self_attention.linear_proj.weight.detach(),
        mlp_norm=layer.pre_mlp_layernorm.weight.detach(),
        gate_up=layer.mlp.linear_fc1.weight.detach(),
        down=layer.mlp.linear_fc2.weight.detach(),
    )
