"""A model with its tokenizer: it samples responses, scores them, and predicts their labels.

This is the seam between text and tokens for everything that samples. Prompt and response are
tokenised apart, as in training, and what is scored is always the *text* of a response, tokenised
anew: a trainer will see those tokens, whatever tokens the sampler happened to write it with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, takewhile
from pathlib import Path

import torch
from torch import nn

from nemotron_style.runtime.errors import InputError
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import TOKENIZER, load_model
from nemotron_style.steps.blocks.data.chat.interface import Chat
from nemotron_style.steps.blocks.data.chat.opening import open_chat
from nemotron_style.steps.blocks.data.chat.usable import Sampled, require_usable
from nemotron_style.steps.blocks.data.chat_format import ChatPromptTokens
from nemotron_style.steps.blocks.data.conversation import Conversation
from nemotron_style.steps.blocks.data.seed import seed_of
from nemotron_style.steps.blocks.data.tokenizer import Tokenizer
from nemotron_style.steps.blocks.generation.engine import Engine, Sample
from nemotron_style.steps.blocks.generation.sampling_params import SamplingParams
from nemotron_style.steps.blocks.model.prefix_packing import Group
from nemotron_style.steps.blocks.settings.model_config import ModelConfig
from nemotron_style.steps.blocks.training.sequence_logprob import score_groups

LABEL_TOKENS = 64
"""The most tokens of a predicted label; a longer one counts as it stands."""


@dataclass(frozen=True)
class Request:
    """A prompt, the label that its responses should have, and the seed of their randomness."""

    conversation: Conversation
    label: str | None
    seed: int


@dataclass(frozen=True)
class Response:
    """A finished response without control tokens in it.

    ``retokenised`` says that the tokenizer writes this text with other tokens than were sampled;
    ``attempts`` is how many samples it took.
    """

    text: str
    retokenised: bool
    attempts: int


@dataclass
class ChatSampler:
    """A model that is held for sampling and scoring, and its chat format.

    ``max_rows`` bounds the rows decoded side by side, ``micro_batch_tokens`` the tokens scored in
    one pass.
    """

    model: nn.Module
    config: ModelConfig
    chat: Chat
    max_rows: int = 512
    micro_batch_tokens: int = 16384

    @cached_property
    def engine(self) -> Engine:
        return Engine(self.model, self.config, max_rows=self.max_rows)

    def sample(
        self,
        requests: Sequence[Request],
        *,
        samples: int,
        max_new_tokens: int,
        temperature: float = 1.0,
        max_attempts: int = 1,
    ) -> list[list[Response | None]]:
        """``samples`` responses to each request; None where no attempt gave a usable one.

        A response is usable when the model stopped by itself, the text is not empty, and it holds
        no control token but those that end it, and no id without a token. Others are sampled
        again, never cut or mended: that samples from the model *given* that it finishes, which
        changes every log-prob of a group by the same amount.

        Raises StepFailed when most of those that ended at the first attempt are not usable.
        """
        params = SamplingParams(
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            stop_ids=self.chat.stop_ids,
        )
        responses: list[list[Response | None]] = [[None] * samples for _ in requests]
        for attempt in range(1, max_attempts + 1):
            incomplete = [i for i, group in enumerate(responses) if None in group]
            if not incomplete:
                break
            # The whole group is sampled again, as one seed names all of its samples; those that
            # are not needed are dropped.
            groups = self.engine.generate(
                [self._prompt_ids(requests[i]) for i in incomplete],
                params,
                samples_per_prompt=samples,
                seed=[seed_of(requests[i].seed, attempt) for i in incomplete],
            )
            read = [[self._read(sample, attempt) for sample in group] for group in groups]
            if attempt == 1:  # later ones ask again only what was hard to answer
                self._require_usable(groups, read)
            for i, group in zip(incomplete, read, strict=True):
                fresh = iter(group)
                responses[i] = [kept if kept is not None else next(fresh) for kept in responses[i]]
        return responses

    def score_responses(
        self, requests: Sequence[Request], texts: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """``log p(response | prompt, label)`` of the responses ``texts[i]`` to request i.

        The sum is over the tokens of ``{text}{end_of_turn}{turn_start}``.
        """
        groups = [
            Group(
                self._prompt_ids(request),
                [self.chat.response_ids(text) for text in group],
            )
            for request, group in zip(requests, texts, strict=True)
        ]
        self._refuse_long(groups)
        return score_groups(self.model, groups, micro_batch_tokens=self.micro_batch_tokens)

    def score_labels(
        self, requests: Sequence[Request], texts: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """``log p(label | prompt, response)`` of each request's label, for each response to it.

        The sum is over the tokens of ``{label}{end_of_turn}`` after ``{label_start}``.
        """
        groups, label_lengths = [], []
        for request, responses in zip(requests, texts, strict=True):
            label = self.chat.label_ids(request.label or "")
            asked = [self.chat.attribute_ids(request.conversation, text) for text in responses]
            # The tokens that all prompts begin with are computed once, as the group's prompt. The
            # rest of each prompt is part of its "response", of which only the label is summed.
            shared = _shared_length(asked)
            groups.append(Group(asked[0][:shared], [ids[shared:] + label for ids in asked]))
            label_lengths.append(len(label))
        self._refuse_long(groups)
        return score_groups(
            self.model, groups, micro_batch_tokens=self.micro_batch_tokens, last=label_lengths
        )

    def predict_labels(self, pairs: Sequence[tuple[Conversation, str]]) -> list[str]:
        """The likeliest label of each conversation with its response, token by token.

        One that holds an id without a token is no label: U+FFFD stands for it.
        """
        prompts = [self.chat.attribute_ids(conversation, text) for conversation, text in pairs]
        longest = max((len(ids) for ids in prompts), default=0)
        params = SamplingParams(
            max_new_tokens=max(1, min(LABEL_TOKENS, self.config.max_sequence_length - longest)),
            temperature=0.0,
            stop_ids=self.chat.label_stop_ids,
        )
        groups = self.engine.generate(prompts, params, seed=0)
        return [self.chat.read_label(group[0].tokens) for group in groups]

    def _require_usable(
        self, groups: Sequence[Sequence[Sample]], read: Sequence[Sequence[Response | None]]
    ) -> None:
        pairs = zip(chain(*groups), chain(*read), strict=True)
        samples = [Sampled(one.tokens, one.finished, text is not None) for one, text in pairs]
        require_usable(self.chat, samples)

    def _read(self, sample: Sample, attempt: int) -> Response | None:
        """The response that a sample holds, or None when it is not usable."""
        text = self.chat.read_response(sample.tokens, whole=True) if sample.finished else None
        if text is None:
            return None
        return Response(text, self.chat.response_ids(text) != sample.tokens, attempt)

    def _prompt_ids(self, request: Request) -> list[int]:
        return self.chat.prompt_ids(request.conversation, request.label)

    def _refuse_long(self, groups: Sequence[Group]) -> None:
        room = self.config.max_sequence_length
        lengths = (
            len(group.prompt_ids) + len(ids) for group in groups for ids in group.responses_ids
        )
        longest = max(lengths, default=0)
        if longest > room:
            raise InputError(
                f"a prompt with its response has {longest} tokens; the model holds {room}: "
                "lower sampling.max_new_tokens"
            )


def _shared_length(rows: Sequence[Sequence[int]]) -> int:
    """How many first tokens all ``rows`` have in common."""
    columns = zip(*rows, strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))


def without_label(requests: Sequence[Request]) -> list[Request]:
    """The same requests as P(y|x) sees them."""
    return [replace(request, label=None) for request in requests]


def load_chat_sampler(
    path: Path,
    *,
    tokens: ChatPromptTokens | None = None,
    half: bool = False,
    max_rows: int = 512,
) -> ChatSampler:
    """The model of a checkpoint directory, ready to sample; ``half`` runs it in bfloat16.

    Raises InputError when the checkpoint was made for other chat ``tokens`` than are given.
    """
    model, config = load_model(path, dtype=torch.bfloat16 if half else torch.float32, ddp=False)
    tokenizer = Tokenizer(path / TOKENIZER)
    return ChatSampler(model.eval(), config, open_chat(tokenizer, tokens), max_rows=max_rows)
