"""A reward model read from its files and asked what conversations are worth.

It needs torch, safetensors and tokenizers, and neither megatron-core nor transformers; nothing in
the files is run. Rows are causal and padded on the right, so what stands beside a conversation in
a pass does not change what it gets, but for the last digits of float32 sums.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nemotron_style.runtime.errors import InputError, Problem, raise_all
from nemotron_style.steps.blocks.chat import ChatFormat, Conversation, parse_conversation
from nemotron_style.steps.blocks.hugging_face_config import read_settings
from nemotron_style.steps.blocks.llama import llama_states
from nemotron_style.steps.blocks.reward_config import RewardConfig, Scored, read_reward_config
from nemotron_style.steps.blocks.safetensor import TensorFolder
from nemotron_style.steps.blocks.tokenizer import Tokenizer, open_chat

__all__ = ["Message", "RewardModel", "Scored", "read_conversation"]

ARCHITECTURE = "LlamaForSequenceClassification"
HEAD = "score.weight"
Message = Mapping[str, str]


def read_conversation(
    conversation: Conversation, *, tokenizer: Tokenizer, chat: ChatFormat
) -> list[int]:
    """The tokens a reward model reads: the whole conversation and the token that ends it.

    That is what the chat template renders, tokenised in one piece; its last token is the
    ``turn_start`` behind the assistant's last turn, and there the head reads.
    """
    return tokenizer.encode("".join(chat.example(conversation)), control=True)


@dataclass(frozen=True)
class RewardModel:
    """A reward model in memory, in float32, on the GPU where there is one."""

    config: RewardConfig
    settings: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    tokenizer: Tokenizer
    chat: ChatFormat

    @classmethod
    def load(cls, path: Path) -> RewardModel:
        """Read the folder of a ``reward_model``.

        Raises:
            InputError: a part is missing or damaged, or is not a Llama with a head for scoring.
        """
        config, settings = read_reward_config(path), read_settings(path)
        if settings.get("architectures") != [ARCHITECTURE]:
            got = str(settings.get("architectures"))
            what = "another architecture"
            raise InputError(
                Problem(
                    where=str(path), key="architectures", what=what, got=got, allowed=ARCHITECTURE
                )
            )
        folder = TensorFolder(path)
        _check_tensors(folder, settings, config)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        weights = {name: folder.read(name).to(device, torch.float32) for name in folder.shapes}
        tokenizer = Tokenizer(path)
        return cls(config, settings, weights, tokenizer, open_chat(tokenizer, config.chat))

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the attributes, in the order of the head's outputs."""
        return self.config.outputs

    def score(
        self, conversations: Sequence[Sequence[Message]], *, batch_tokens: int = 16384
    ) -> list[Scored]:
        """What each conversation is worth, in the order given.

        A pass holds ``batch_tokens`` padded tokens, or one conversation that alone is longer.

        Raises:
            InputError: naming every conversation that does not end with an assistant's turn, is
                longer than the model may read, or holds a control token.
        """
        rows = self._encode(conversations)
        found: list[Scored | None] = [None] * len(rows)
        for places in _passes(rows, batch_tokens):
            for place, outputs in zip(places, self._run([rows[i] for i in places]), strict=True):
                found[place] = self.config.rate(outputs)
        return [one for one in found if one is not None]

    @torch.inference_mode()
    def _run(self, rows: Sequence[Sequence[int]]) -> list[list[float]]:
        """The head's outputs for rows of tokens."""
        width = max(map(len, rows))
        head = self.weights[HEAD]
        tokens_BS = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
        states_BSH = llama_states(
            self.settings, self.weights.__getitem__, tokens_BS.to(head.device)
        )
        last_B = torch.tensor([len(row) - 1 for row in rows], device=head.device)
        last_BH = states_BSH[torch.arange(len(rows), device=head.device), last_B]
        return (last_BH @ head.T).double().tolist()

    def _encode(self, conversations: Sequence[Sequence[Message]]) -> list[list[int]]:
        rows: list[list[int]] = []
        problems: list[Problem] = []
        for place, messages in enumerate(conversations):
            try:
                rows.append(self._encode_one(messages))
            except InputError as error:
                where = f"conversations[{place}]"
                problems += [replace(problem, where=where) for problem in error.problems]
        raise_all(InputError, problems)
        return rows

    def _encode_one(self, messages: Sequence[Message]) -> list[int]:
        conversation = parse_conversation({"messages": list(messages)})
        ids = read_conversation(conversation, tokenizer=self.tokenizer, chat=self.chat)
        room = self.config.max_sequence_length
        if len(ids) > room:
            what = "the conversation is longer than the model may read"
            raise InputError(
                Problem(key="messages", what=what, got=f"{len(ids)} tokens", allowed=str(room))
            )
        return ids


def _passes(rows: Sequence[Sequence[int]], limit: int) -> Iterator[list[int]]:
    """Places of the rows of each pass, shortest first, rows of like length together."""
    places: list[int] = []
    for place in sorted(range(len(rows)), key=lambda i: (len(rows[i]), i)):
        if places and (len(places) + 1) * len(rows[place]) > limit:
            yield places
            places = []
        places.append(place)
    if places:
        yield places


def _check_tensors(folder: TensorFolder, settings: Mapping[str, Any], config: RewardConfig) -> None:
    hidden, layers = settings.get("hidden_size"), settings.get("num_hidden_layers", 0)
    of_a_layer = ("input_layernorm", "post_attention_layernorm")
    of_a_layer += tuple(f"self_attn.{name}_proj" for name in "qkvo")
    of_a_layer += tuple(f"mlp.{name}_proj" for name in ("gate", "up", "down"))
    wanted = {HEAD, "model.embed_tokens.weight", "model.norm.weight"}
    wanted |= {f"model.layers.{i}.{name}.weight" for i in range(layers) for name in of_a_layer}
    problems = [
        Problem(where=str(folder.path), key=name, what="a tensor is missing")
        for name in sorted(wanted - set(folder.shapes))
    ]
    shape = folder.shapes.get(HEAD)
    if shape and shape != (len(config.outputs), hidden):
        what = "the head does not fit the outputs"
        allowed = str([len(config.outputs), hidden])
        problems.append(
            Problem(
                where=str(folder.path), key=HEAD, what=what, got=str(list(shape)), allowed=allowed
            )
        )
    raise_all(InputError, problems)
