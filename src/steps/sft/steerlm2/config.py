"""Settings of ``sft/steerlm2``, under the names of NeMo-Aligner's ``gpt_sft.yaml``.

What is declared here decides something; the keys of ``aligner_keys`` and ``fixed_values`` are
there so that a command line written for NeMo-Aligner is understood. A key that only repeats
another one may be left out, or must agree with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field, model_validator

from nemotron_style.runtime.config.model import Section, StepConfig, Tracker, cosmetic, unused
from nemotron_style.runtime.errors import ConfigError, Problem, raise_all
from nemotron_style.steps.blocks.data.chat_format import ChatPromptTokens
from nemotron_style.steps.blocks.settings.aligner_keys import (
    DatasetRest,
    ModelRest,
    find_half_weights,
)
from nemotron_style.steps.blocks.settings.data_prefix import DataPrefix, move_prefix
from nemotron_style.steps.blocks.settings.fixed_value import find_conflicts, fixed
from nemotron_style.steps.blocks.settings.optimizer_config import OptimConfig
from nemotron_style.steps.blocks.settings.parallel_config import DividedModel
from nemotron_style.steps.blocks.settings.peft_config import LoraTuning
from nemotron_style.steps.blocks.settings.row_config import RowReading
from nemotron_style.steps.blocks.settings.training_config import (
    AlignerJob,
    Count,
    Length,
    ValidationLimit,
    limit_validation,
    trackers_of,
)
from nemotron_style.steps.sft.steerlm2.fixed_values import ExpManager


class Sft(Length):
    """``trainer.sft``: where training ends, and how often it validates and saves.

    The interval of validation and its rows change the result, since the best model is produced.
    """

    val_check_interval: int = Field(default=100, ge=0)
    limit_train_batches: float = fixed(
        1.0, why="all batches are used", fix="set trainer.sft.max_steps"
    )
    limit_val_batches: ValidationLimit = 1.0


class Trainer(AlignerJob):
    """``trainer``: processes, precision and length of the run."""

    sft: Sft = Sft()


class TrainData(DatasetRest):
    """``model.data.train_ds``; sizes count rows, each a prompt with all its responses."""

    file_path: str | None = None
    global_batch_size: Count = 128
    max_seq_length: Count | None = None
    shuffle: bool = fixed(True, why="rows are always shuffled, by the seed")
    drop_last: bool = fixed(
        True, why="an epoch holds whole batches", fix="set model.data.sample=true"
    )


class ValidationData(DatasetRest):
    """``model.data.validation_ds``; its first rows are used, or all of them.

    ``global_batch_size`` is the unit in which ``trainer.sft.limit_val_batches`` counts.
    """

    file_path: str | None = None
    global_batch_size: Count | None = None
    max_seq_length: Count | None = None
    shuffle: bool = fixed(False, why="every row is used")
    drop_last: bool = unused(True)
    output_original_text: bool = unused(True)


class Data(RowReading):
    """``model.data``: the files, how rows are read, and how a conversation is written as text.

    ``chat_prompt_tokens`` left out are those stored with the model's tokenizer.
    """

    layout: str | None = fixed(None, why="rows of SteerLM 2.0 have one form")

    chat: bool = fixed(
        True,
        why="SteerLM 2.0 rows are conversations",
        fix="set model.data.chat=true; NeMo-Aligner's default of false is for plain SFT",
    )
    chat_prompt_tokens: ChatPromptTokens | None = None
    sample: bool = False
    num_workers: int = unused(0, ge=0)
    train_ds: TrainData = TrainData()
    validation_ds: ValidationData = ValidationData()
    data_prefix: DataPrefix = DataPrefix()

    @model_validator(mode="before")
    @classmethod
    def _move_prefix(cls, data: Any) -> Any:
        return move_prefix(data)


class SteerLM2(Section):
    """``model.steerlm2``; the two sizes count responses and never change the result.

    ``sampler_tolerance`` bounds the noise of a token in nats before the first step; null means
    1e-4, or 1e-2 in bfloat16.  ``effective_sample_floor`` is the mean effective sample size below
    which a warning is given.
    """

    forward_micro_batch_size: Count = 1
    micro_batch_size: Count = 1
    allow_other_sampler: bool = False
    sampler_tolerance: Annotated[float, Field(gt=0)] | None = None
    effective_sample_floor: float = Field(default=1.5, ge=1)


class Model(ModelRest, DividedModel):
    """``model``: what is trained, how it is divided, and on what."""

    restore_from_path: str | None = None
    seed: int | None = cosmetic(default=None)
    encoder_seq_length: Count | None = None
    global_batch_size: Count | None = cosmetic(default=None)
    micro_batch_size: Count | None = unused(None)
    steerlm2: SteerLM2 = SteerLM2()
    data: Data = Data()
    optim: OptimConfig = OptimConfig()


class Config(StepConfig):
    """Settings of a SteerLM 2.0 training run."""

    name: str = unused("sft-steerlm2")
    trainer: Trainer = Trainer()
    exp_manager: ExpManager = ExpManager()
    model: Model = Model()

    @property
    def sampler_tolerance(self) -> float:
        """The noise of a token in nats that is allowed before the first step."""
        rounding = 1e-2 if self.trainer.half else 1e-4
        return self.model.steerlm2.sampler_tolerance or rounding

    def validation_rows(self, available: int) -> int:
        """How many of ``available`` validation rows are used, the first ones."""
        limit, data = self.trainer.sft.limit_val_batches, self.model.data
        batch_size = data.validation_ds.global_batch_size or data.train_ds.global_batch_size
        return limit_validation(limit, available, batch_size=batch_size)

    def longest(self, model_limit: int) -> int:
        """The most tokens of a prompt with a response, for a model that holds ``model_limit``."""
        data = self.model.data
        lengths = data.train_ds.max_seq_length, data.validation_ds.max_seq_length
        return min(filter(None, (model_limit, self.model.encoder_seq_length, *lengths)))

    def trackers(self) -> Mapping[str, Tracker]:
        return trackers_of(self.trainer, self.exp_manager)

    @model_validator(mode="after")
    def _agree(self) -> Config:
        problems = [*find_conflicts(_mirrors(self))]
        problems += self.trainer.sft.find_missing_end("trainer.sft")
        problems += find_half_weights(self.model.megatron_amp_O2, self.trainer)
        problems += _find_dropout(self.model.peft.lora)
        raise_all(ConfigError, problems)
        return self


def _find_dropout(lora: LoraTuning | None) -> Iterator[Problem]:
    if lora and lora.adapter_dropout:
        what = "the baseline of a response is what the model gives it, and dropout would blur that"
        key, got = "model.peft.lora_tuning.adapter_dropout", f"{lora.adapter_dropout:g}"
        yield Problem(key=key, what=what, got=got, allowed="0", fix="set it to 0")


def _mirrors(config: Config) -> list[tuple[str, Any, str, Any]]:
    """Keys that repeat another one: ``(key, value, the other key, its value)``."""
    model, train, sft = config.model, config.model.data.train_ds, config.trainer.sft
    return [
        ("model.seed", model.seed, "seed", config.seed),
        (
            "model.global_batch_size",
            model.global_batch_size,
            "model.data.train_ds.global_batch_size",
            train.global_batch_size,
        ),
        ("trainer.max_epochs", config.trainer.max_epochs, "trainer.sft.max_epochs", sft.max_epochs),
        ("trainer.max_steps", config.trainer.max_steps, "trainer.sft.max_steps", sft.max_steps),
    ]
