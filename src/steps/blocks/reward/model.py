"""A reward model that is read from its files and scores conversations.

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
from nemotron_style.steps.blocks.checkpoint.families.tensors import expected_shapes
from nemotron_style.steps.blocks.checkpoint.hf_config import (
    CONFIG_FILE,
    parse_sizes,
    read_family,
    read_settings,
)
from nemotron_style.steps.blocks.checkpoint.reference_model import reference_states
from nemotron_style.steps.blocks.checkpoint.safetensors_folder import TensorFolder
from nemotron_style.steps.blocks.data.chat.interface import Chat
from nemotron_style.steps.blocks.data.chat.opening import open_chat
from nemotron_style.steps.blocks.data.conversation import parse_conversation
from nemotron_style.steps.blocks.data.tokenizer import Tokenizer
from nemotron_style.steps.blocks.reward.config import RewardConfig, read_reward_config
from nemotron_style.steps.blocks.reward.types import Message, RewardScore
from nemotron_style.steps.blocks.settings.model_config import ModelConfig

__all__ = ["Message", "RewardModel", "RewardScore"]

HEAD = "score.weight"


@dataclass(frozen=True)
class RewardModel:
    """A reward model in memory, in float32, on the GPU where there is one."""

    config: RewardConfig
    settings: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    chat: Chat

    @classmethod
    def load(cls, path: Path) -> RewardModel:
        """Read the folder of a ``reward_model``.

        Raises:
            InputError: a part is missing or damaged, or the model has no head for scoring or is of
                no family that is known.
        """
        config, settings = read_reward_config(path), read_settings(path)
        allowed = read_family(settings, where=str(path / CONFIG_FILE)).scoring_class
        if settings.get("architectures") != [allowed]:
            got = str(settings.get("architectures"))
            what = "another architecture"
            raise InputError(
                Problem(where=str(path), key="architectures", what=what, got=got, allowed=allowed)
            )
        sizes = parse_sizes({**settings, "architectures": None}, path)
        folder, tokenizer = TensorFolder(path), Tokenizer(path)
        _check_tensors(folder, sizes, len(config.outputs))
        _check_words(tokenizer, sizes)
        chat = open_chat(tokenizer, config.chat)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        weights = {name: folder.read(name).to(device, torch.float32) for name in folder.shapes}
        return cls(config, settings, weights, chat)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the attributes, in the order of the head's outputs."""
        return self.config.outputs

    @property
    def max_tokens(self) -> int:
        """The longest conversation that it reads."""
        return self.config.max_sequence_length

    def score(
        self, conversations: Sequence[Sequence[Message]], *, batch_tokens: int = 16384
    ) -> list[RewardScore]:
        """The score of each conversation, in their order.

        A pass holds ``batch_tokens`` padded tokens, or one conversation that alone is longer.

        Raises:
            InputError: naming every conversation that does not end with an assistant's turn, is
                longer than the model may read, or holds a control token.
        """
        rows = self._encode(conversations)
        scores: list[RewardScore | None] = [None] * len(rows)
        for indices in _passes(rows, batch_tokens):
            for index, outputs in zip(indices, self._run([rows[i] for i in indices]), strict=True):
                scores[index] = self.config.rate(outputs)
        return [one for one in scores if one is not None]

    @torch.inference_mode()
    def _run(self, rows: Sequence[Sequence[int]]) -> list[list[float]]:
        """The head's outputs for rows of tokens."""
        width = max(map(len, rows))
        head = self.weights[HEAD]
        tokens_BS = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
        states_BSH = reference_states(
            self.settings, self.weights.__getitem__, tokens_BS.to(head.device)
        )
        last_B = torch.tensor([len(row) - 1 for row in rows], device=head.device)
        last_BH = states_BSH[torch.arange(len(rows), device=head.device), last_B]
        return (last_BH @ head.T).double().tolist()

    def _encode(self, conversations: Sequence[Sequence[Message]]) -> list[list[int]]:
        rows: list[list[int]] = []
        problems: list[Problem] = []
        for index, messages in enumerate(conversations):
            try:
                rows.append(self._encode_one(messages))
            except InputError as error:
                where = f"conversations[{index}]"
                problems += [replace(problem, where=where) for problem in error.problems]
        raise_all(InputError, problems)
        return rows

    def _encode_one(self, messages: Sequence[Message]) -> list[int]:
        conversation = parse_conversation({"messages": list(messages)})
        ids = self.chat.conversation_ids(conversation)
        room = self.config.max_sequence_length
        if len(ids) > room:
            what = "the conversation is longer than the model may read"
            raise InputError(
                Problem(key="messages", what=what, got=f"{len(ids)} tokens", allowed=str(room))
            )
        return ids


def _passes(rows: Sequence[Sequence[int]], limit: int) -> Iterator[list[int]]:
    """Places of the rows of each pass, shortest first, rows of like length together."""
    indices: list[int] = []
    for index in sorted(range(len(rows)), key=lambda i: (len(rows[i]), i)):
        if indices and (len(indices) + 1) * len(rows[index]) > limit:
            yield indices
            indices = []
        indices.append(index)
    if indices:
        yield indices


def _check_tensors(folder: TensorFolder, sizes: ModelConfig, outputs: int) -> None:
    """Raise InputError, naming every tensor that is missing or of another shape."""
    layers, where = sizes.num_layers, str(folder.path)
    if layers > len(folder.shapes):  # before the tensors of all layers are listed
        what = "promises more layers than the weights have tensors"
        key, allowed = "num_hidden_layers", f"{len(folder.shapes)} at most"
        raise InputError(Problem(where=where, key=key, what=what, got=str(layers), allowed=allowed))
    wanted = expected_shapes(sizes.model_copy(update={"tie_embeddings": True}))  # without a head
    wanted |= {HEAD: (outputs, sizes.hidden_size)}
    raise_all(
        InputError,
        [
            Problem(
                where=str(folder.path),
                key=name,
                what="a tensor is missing or has another shape than the settings say",
                got=str(list(folder.shapes[name])) if name in folder.shapes else "",
                allowed=str(list(shape)),
            )
            for name, shape in wanted.items()
            if folder.shapes.get(name) != shape
        ],
    )


def _check_words(tokenizer: Tokenizer, sizes: ModelConfig) -> None:
    if tokenizer.vocab_size > sizes.vocab_size:
        what = "the tokenizer gives ids that the model has no rows for"
        got, allowed = str(tokenizer.vocab_size), f"{sizes.vocab_size} at most"
        raise InputError(Problem(where=str(tokenizer.path), what=what, got=got, allowed=allowed))
