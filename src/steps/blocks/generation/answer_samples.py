"""The same prompts answered before and after training, side by side in ``samples/samples.md``.

Greedy and short, from a handful of prompts, with random numbers of their own: nothing of the
training changes. The answers of the start are kept in the run, so that an attempt that continues
has them too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from nemotron_style.runtime.errors import StepsError
from nemotron_style.runtime.step.context import StepContext
from nemotron_style.steps.blocks.data.chat.interface import Chat
from nemotron_style.steps.blocks.generation.engine import Engine
from nemotron_style.steps.blocks.generation.sampling_params import SamplingParams
from nemotron_style.steps.blocks.model.parallel import current_parallel
from nemotron_style.steps.blocks.settings.model_config import ModelConfig
from nemotron_style.steps.blocks.settings.training_config import Samples
from nemotron_style.steps.blocks.training.sample_table import SampleFile, shorten_prompt

CUT = " […]"
"""Ends an answer that found no end within its tokens."""


@dataclass(frozen=True)
class Question:
    """A prompt as the model reads it, and an answer from the data to compare with.

    ``asks_label`` says that the model answers with the attributes of an answer.
    """

    ids: Sequence[int]
    reference: str = ""
    asks_label: bool = False


@dataclass(frozen=True)
class AnswerSamples:
    """A model's answers to ``questions``, by the number of updates after which it gave them.

    Rank zero samples. Where ranks divide the model and the run samples from it anyway, all of them
    do: each of them takes a copy of all weights then (``gathers``).
    """

    ctx: StepContext
    chat: Chat
    sizes: ModelConfig
    questions: Sequence[Question]
    max_new_tokens: int
    gathers: bool = False

    @staticmethod
    def open(
        ctx: StepContext,
        settings: Samples,
        chat: Chat,
        sizes: ModelConfig,
        questions: Iterable[Question],
        *,
        gathers: bool = False,
    ) -> AnswerSamples:
        """Choose the first few different ``questions`` that leave room for an answer.

        None of them, with the reason, where the model is divided and the run does not gather it.
        """
        most, limit = settings.max_new_tokens, sizes.max_sequence_length
        divided = current_parallel().model > 1
        if settings.prompts and divided and not gathers:
            ctx.say("no samples.md: the model is divided, and sampling needs it whole")
            questions = []
        longest = limit - min(most, max(1, limit // 4))
        fitting = (each for each in questions if len(each.ids) <= longest)
        chosen: dict[tuple[int, ...], Question] = {}
        while len(chosen) < settings.prompts and (question := next(fitting, None)):
            chosen.setdefault(tuple(question.ids), question)
        room = limit - max(map(len, chosen), default=0)
        asked = list(chosen.values())
        return AnswerSamples(ctx, chat, sizes, asked, min(most, room), gathers=divided)

    def begin(self, model: nn.Module, done: int) -> None:
        """Keep the answers of the start; with ``done`` updates an earlier attempt has kept them."""
        if done == 0:
            self.take(model, 0)

    def take(self, model: nn.Module, step: int) -> None:
        """Keep the answers of ``model``, which has made ``step`` updates. Every rank calls it."""
        if not (self.questions and (self.ctx.is_first or self.gathers)):
            return
        try:
            answers = self._answer(model)
        except (StepsError, torch.OutOfMemoryError) as error:  # they must not end a training run
            first, *_ = str(error).splitlines() or [""]
            self.ctx.say(f"warning: no answers for samples.md after {step} steps: {first}")
            return
        if self.ctx.is_first:
            self._file.keep(step, answers)

    def finish(self, model: nn.Module, steps: int) -> None:
        """Take the answers of the trained model, and write the table."""
        self.take(model, steps)
        self.write(after=steps)

    def write(self, *, after: int) -> None:
        """Write the answers of the start beside those of the model after ``after`` updates."""
        if not (self.ctx.is_first and self.questions):
            return
        kept = self._file.read()
        columns = {
            "prompt": [shorten_prompt(self.chat.visible_text(each.ids)) for each in self.questions],
            "in the data": [each.reference for each in self.questions],
            "before": kept.get(0),
            f"after {after} steps": kept.get(after),
        }
        shown = {head: cells for head, cells in columns.items() if cells and any(cells)}
        self._file.write_table(list(shown), list(zip(*shown.values(), strict=True)))

    @property
    def _file(self) -> SampleFile:
        return SampleFile(self.ctx.run_dir, "answers")

    def _answer(self, model: nn.Module) -> list[str]:
        engine, answers = Engine(model, self.sizes), [""] * len(self.questions)
        for asks_label in (False, True):
            stop_ids = self.chat.label_stop_ids if asks_label else self.chat.stop_ids
            params = SamplingParams(
                max_new_tokens=self.max_new_tokens, temperature=0.0, stop_ids=stop_ids
            )
            asked = [at for at, one in enumerate(self.questions) if one.asks_label == asks_label]
            groups = engine.generate([self.questions[at].ids for at in asked], params, seed=0)
            for at, [sample] in zip(asked, groups, strict=True):
                text = self.chat.visible_text(sample.tokens)
                answers[at] = text if sample.finished else text + CUT
        return answers
