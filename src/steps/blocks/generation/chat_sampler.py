"""A model with its words: it answers prompts, weighs answers, and names their attributes.

This is the seam between text and tokens for everything that samples. Prompt and response are
tokenised apart, as in training, and what is weighed is always the *text* of a response, tokenised
anew: that is what a trainer will see, whatever tokens the sampler happened to say it with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import takewhile
from pathlib import Path

import torch
from torch import nn

from nemotron_style.runtime.errors import InputError
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import TOKENIZER, load_model
from nemotron_style.steps.blocks.data.chat_format import (
    ChatFormat,
    ChatPromptTokens,
    Conversation,
)
from nemotron_style.steps.blocks.data.seed import seed_of
from nemotron_style.steps.blocks.data.tokenizer import Tokenizer, open_chat, stop_id
from nemotron_style.steps.blocks.generation.engine import Engine, Sample
from nemotron_style.steps.blocks.generation.sampling_params import Sampling
from nemotron_style.steps.blocks.model.prefix_packing import Group
from nemotron_style.steps.blocks.settings.model_config import ModelConfig
from nemotron_style.steps.blocks.training.sequence_logprob import score_groups

LABEL_TOKENS = 64
"""The longest label that is read from an attribute model; a longer one counts as it stands."""


@dataclass(frozen=True)
class Request:
    """A prompt, the label that its answers are asked to have, and the name of their randomness."""

    conversation: Conversation
    label: str | None
    seed: int


@dataclass(frozen=True)
class Answer:
    """What was said: a finished response without control tokens in it.

    ``retokenised`` tells that the tokenizer writes this text with other tokens than were sampled;
    ``attempts`` how many draws it took.
    """

    text: str
    retokenised: bool
    attempts: int


@dataclass(frozen=True)
class Draw:
    """How answers are drawn."""

    max_new_tokens: int
    temperature: float = 1.0
    max_attempts: int = 1


@dataclass
class Speaker:
    """A model that is held for sampling and scoring, its tokenizer and its chat format.

    ``max_rows`` bounds what is decoded side by side, ``micro_batch_tokens`` what is weighed in
    one pass.
    """

    model: nn.Module
    config: ModelConfig
    tokenizer: Tokenizer
    chat: ChatFormat
    max_rows: int = 512
    micro_batch_tokens: int = 16384

    @cached_property
    def engine(self) -> Engine:
        return Engine(self.model, self.config, max_rows=self.max_rows)

    def answer(
        self, requests: Sequence[Request], *, samples: int, draw: Draw
    ) -> list[list[Answer | None]]:
        """``samples`` answers to each request; None where no attempt gave a usable one.

        An answer is usable when the model stopped by itself, said something, and used no control
        token but those that end it. Others are drawn again, never cut or mended: that samples
        from the model *given* that it finishes, which changes every log-prob of a group alike.
        """
        answers: list[list[Answer | None]] = [[None] * samples for _ in requests]
        for attempt in range(1, draw.max_attempts + 1):
            open_places = [i for i, group in enumerate(answers) if None in group]
            drawn = self._sample([requests[i] for i in open_places], attempt, samples, draw)
            for place, fresh in zip(open_places, drawn, strict=True):
                found = iter([self._read(sample, attempt) for sample in fresh])
                answers[place] = [
                    answer if answer is not None else next(found) for answer in answers[place]
                ]
        return answers

    def weigh(
        self, requests: Sequence[Request], texts: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """``log p(response | prompt, label)`` of the responses ``texts[i]`` to request i.

        The sum is over the tokens of ``{text}{end_of_turn}{turn_start}``.
        """
        groups = [
            Group(self._prompt(request), [self._encode(self.chat.response(text)) for text in said])
            for request, said in zip(requests, texts, strict=True)
        ]
        self._refuse_long(groups)
        return score_groups(self.model, groups, micro_batch_tokens=self.micro_batch_tokens)

    def weigh_labels(
        self, requests: Sequence[Request], texts: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """``log p(label | prompt, response)`` of each request's label, for each response to it.

        The sum is over the tokens of ``{label}{end_of_turn}`` after ``{label_start}``.
        """
        groups, last = [], []
        for request, said in zip(requests, texts, strict=True):
            label = self._encode(self.chat.label_text(request.label or ""))
            given = [self._asking(request.conversation, text) for text in said]
            # What the texts begin with alike is computed once; the label alone is counted.
            shared = _shared_length(given)
            tails = [ids[shared:] + label for ids in given]
            groups.append(Group(given[0][:shared], tails))
            last.append(len(label))
        self._refuse_long(groups)
        return score_groups(
            self.model, groups, micro_batch_tokens=self.micro_batch_tokens, last=last
        )

    def name_label(self, pairs: Sequence[tuple[Conversation, str]]) -> list[str]:
        """The likeliest label of each answered conversation, token by token."""
        asking = [self._asking(conversation, text) for conversation, text in pairs]
        longest = max((len(ids) for ids in asking), default=0)
        drawn = self.engine.generate(
            asking,
            Sampling(
                max_new_tokens=max(1, min(LABEL_TOKENS, self.config.max_sequence_length - longest)),
                temperature=0.0,
                stop_ids=[self._encode(self.chat.tokens.end_of_turn)[-1]],
            ),
            seed=0,
        )
        texts = [self.tokenizer.decode(samples[0].tokens) for samples in drawn]
        return [text.removesuffix(self.chat.tokens.end_of_turn) for text in texts]

    def _sample(
        self, requests: Sequence[Request], attempt: int, samples: int, draw: Draw
    ) -> list[list[Sample]]:
        return self.engine.generate(
            [self._prompt(request) for request in requests],
            Sampling(
                max_new_tokens=draw.max_new_tokens,
                temperature=draw.temperature,
                stop_ids=[stop_id(self.tokenizer, self.chat)],
            ),
            samples_per_prompt=samples,
            seed=[seed_of(request.seed, attempt) for request in requests],
        )

    def _read(self, sample: Sample, attempt: int) -> Answer | None:
        """The answer that a sample holds, or None when it is not usable."""
        known = self.tokenizer.vocab_size  # rows of the embedding beyond it only pad it
        if not sample.finished or max(sample.tokens) >= known:
            return None
        said = self.tokenizer.decode(sample.tokens)
        text = self.chat.read_response(said)
        try:
            whole = self.chat.response(text)
        except InputError:  # a control token in the middle
            return None
        if whole != said or not text:
            return None
        return Answer(text, self._encode(whole) != sample.tokens, attempt)

    def _prompt(self, request: Request) -> list[int]:
        asked = request.conversation
        return self._encode(self.chat.prompt(asked.turns, system=asked.system, label=request.label))

    def _asking(self, conversation: Conversation, text: str) -> list[int]:
        """The prompt of P(a|x,y): the answered conversation, asking for its label."""
        plain = self.chat.prompt(conversation.turns, system=conversation.system)
        return self._encode(self.chat.score(plain, text))

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, control=True)

    def _refuse_long(self, groups: Sequence[Group]) -> None:
        room = self.config.max_sequence_length
        longest = max(
            len(group.prompt_ids) + len(ids) for group in groups for ids in group.responses_ids
        )
        if longest > room:
            raise InputError(
                f"a prompt with its response has {longest} tokens; the model holds {room}: "
                "lower sampling.max_new_tokens"
            )


def _shared_length(texts: Sequence[Sequence[int]]) -> int:
    """How many first tokens all ``texts`` have in common."""
    columns = zip(*texts, strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))


def without_label(requests: Sequence[Request]) -> list[Request]:
    """The same requests as P(y|x) sees them."""
    return [replace(request, label=None) for request in requests]


def load_speaker(
    path: Path, *, tokens: ChatPromptTokens | None = None, half: bool = False
) -> Speaker:
    """The model of a checkpoint directory, ready to speak; ``half`` runs it in bfloat16.

    Raises InputError when the checkpoint was made for other chat ``tokens`` than are given.
    """
    model, config = load_model(path, dtype=torch.bfloat16 if half else torch.float32, ddp=False)
    tokenizer = Tokenizer(path / TOKENIZER)
    return Speaker(model.eval(), config, tokenizer, open_chat(tokenizer, tokens))
