"""Settings of ``sft/chat``, under the names of NeMo-Aligner's ``gpt_sft.yaml``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, model_validator

from nemotron_style.runtime.config.model import Section, StepConfig, Tracker, cosmetic, unused
from nemotron_style.runtime.errors import ConfigError, Problem, raise_all
from nemotron_style.steps.blocks.data.chat_format import ChatPromptTokens
from nemotron_style.steps.blocks.data.conversation import TrainOn
from nemotron_style.steps.blocks.settings.aligner_keys import (
    DatasetRest,
    ModelRest,
    find_half_weights,
)
from nemotron_style.steps.blocks.settings.data_prefix import DataPrefix, move_prefix
from nemotron_style.steps.blocks.settings.fixed_value import find_conflicts, fixed
from nemotron_style.steps.blocks.settings.model_config import ModelConfig
from nemotron_style.steps.blocks.settings.optimizer_config import OptimConfig
from nemotron_style.steps.blocks.settings.parallel_config import DividedModel
from nemotron_style.steps.blocks.settings.row_config import LongRowReading
from nemotron_style.steps.blocks.settings.training_config import (
    AlignerJob,
    Count,
    LastExpManager,
    Length,
    Samples,
    ValidationLimit,
    limit_validation,
    trackers_of,
)


class Sft(Length):
    """``trainer.sft``: where training ends, and how often it validates and saves.

    The rows of the last validation change the figures that the model's record holds.
    """

    limit_val_batches: ValidationLimit = 1.0
    limit_train_batches: float = fixed(
        1.0, why="all batches are used", fix="set trainer.sft.max_steps"
    )


class Trainer(AlignerJob):
    """``trainer``: processes, precision and length of the run."""

    samples: Samples = Samples()
    sft: Sft = Sft()


class TrainData(DatasetRest):
    """``model.data.train_ds``. ``micro_batch_size`` bounds memory and never changes the result.

    A pass holds that many rows, each padded to the longest of them. With ``packed_sequence`` it
    holds as many tokens as that many rows of ``max_seq_length`` would, of any number of rows: they
    stand one after the other without padding, and none sees another.
    """

    file_path: str | None = None
    global_batch_size: Count = 128
    micro_batch_size: int = cosmetic(default=1, ge=1)
    packed_sequence: bool = cosmetic(default=True)
    max_seq_length: Count | None = Field(default=None, description="null: as long as the model")
    shuffle: bool = fixed(True, why="rows are always shuffled, by the seed")
    drop_last: bool = fixed(
        True, why="an epoch holds whole batches", fix="set model.data.sample=true"
    )


class ValidationData(DatasetRest):
    """``model.data.validation_ds``; without a file there is no validation."""

    file_path: str | None = None
    global_batch_size: Count | None = Field(default=None, description="null: that of train_ds")
    micro_batch_size: Count | None = cosmetic(default=None, description="null: that of train_ds")
    packed_sequence: bool | None = cosmetic(default=None, description="null: that of train_ds")
    max_seq_length: Count | None = Field(default=None, description="null: that of train_ds")
    shuffle: bool = fixed(False, why="every row is used")
    drop_last: bool = unused(True)
    output_original_text: bool = unused(True)


class Data(LongRowReading):
    """``model.data``: the files, how rows are read, and how a conversation is written as text.

    ``chat_prompt_tokens`` null means those stored with the checkpoint, else the chat template that
    came with it; a model from nothing has NeMo-Aligner's. ``train_on`` says whether all of the
    assistant's turns are trained or the last. With ``sample`` the data are repeated, reshuffled,
    for as long as max_steps asks.
    """

    chat: bool = fixed(
        True,
        why="rows are conversations, and prompt_template does not write them",
        fix="leave it out: rows with input and output become conversations of two turns",
    )
    chat_prompt_tokens: ChatPromptTokens | None = None
    train_on: TrainOn = "all"
    sample: bool = False
    num_workers: int = unused(0, ge=0)
    train_ds: TrainData = TrainData()
    validation_ds: ValidationData = ValidationData()
    data_prefix: DataPrefix = DataPrefix()

    @model_validator(mode="before")
    @classmethod
    def _move_prefix(cls, data: Any) -> Any:
        return move_prefix(data)


class Architecture(Section):
    """Sizes of a model that is trained from nothing, with a tokenizer made from its data.

    ``tokenizer_vocab_size`` is an upper bound, control tokens and the 256 bytes included.
    ``init_method_std`` is the deviation of weights that are drawn; a narrow model wants more of it
    (about ``1 / sqrt(hidden_size)``) than the default, which is for thousands of hidden units.
    """

    num_layers: Count
    hidden_size: Count
    ffn_hidden_size: Count
    num_attention_heads: Count
    num_query_groups: Count
    max_sequence_length: Count
    rope_theta: float = Field(default=10000.0, gt=0)
    norm_epsilon: float = Field(default=1e-5, gt=0)
    tie_embeddings: bool = False
    init_method_std: float = Field(default=0.02, gt=0)
    tokenizer_vocab_size: int = Field(default=32000, ge=300)
    make_vocab_size_divisible_by: Count = 128

    def sizes(self, vocab_size: int) -> ModelConfig:
        """The model's sizes for a tokenizer of ``vocab_size``, rounded up so that it divides."""
        unit = self.make_vocab_size_divisible_by
        rounded = -(-vocab_size // unit) * unit
        own = self.model_dump(include=set(ModelConfig.model_fields) - {"architecture"})
        return ModelConfig(vocab_size=rounded, **own)

    @model_validator(mode="after")
    def _sizes_divide(self) -> Self:
        self.sizes(self.tokenizer_vocab_size)
        return self


class Model(ModelRest, DividedModel):
    """``model``: a checkpoint to start from, or the sizes of a new one; how it is divided.

    With both, the checkpoint is a mistake or the sizes are: the step refuses.
    """

    restore_from_path: str | None = None
    architecture: Architecture | None = None
    seed: int | None = cosmetic(default=None)
    global_batch_size: Count | None = cosmetic(default=None)
    micro_batch_size: Count | None = unused(None)
    encoder_seq_length: Count | None = Field(
        default=None, description="longest row, where the data set gives none"
    )
    data: Data = Data()
    optim: OptimConfig = OptimConfig()


class Config(StepConfig):
    """Settings of a supervised fine-tuning run."""

    name: str = unused("sft-chat")
    trainer: Trainer = Trainer()
    exp_manager: LastExpManager = LastExpManager()
    model: Model = Model()

    @property
    def validation_micro_batch_size(self) -> int:
        """Rows of one pass of validation."""
        data = self.model.data
        return data.validation_ds.micro_batch_size or data.train_ds.micro_batch_size

    def tokens_of_pass(self, slot: str, model_limit: int) -> int | None:
        """The most tokens of a pass over the rows of a slot; None where rows are padded."""
        data, size = self.model.data, self.model.data.train_ds.micro_batch_size
        packed = data.train_ds.packed_sequence
        if slot == "validation":
            size, own = self.validation_micro_batch_size, data.validation_ds.packed_sequence
            packed = packed if own is None else own
        return size * self.longest(slot, model_limit) if packed else None

    def longest(self, slot: str, model_limit: int) -> int:
        """The most tokens of a row of a slot, for a model that holds ``model_limit``."""
        data = self.model.data
        own = data.validation_ds.max_seq_length if slot == "validation" else None
        named = own or data.train_ds.max_seq_length or self.model.encoder_seq_length
        return min(model_limit, named or model_limit)

    def validation_rows(self, available: int) -> int:
        """How many of ``available`` validation rows are used, the first ones."""
        limit, data = self.trainer.sft.limit_val_batches, self.model.data
        batch_size = data.validation_ds.global_batch_size or data.train_ds.global_batch_size
        return limit_validation(limit, available, batch_size=batch_size)

    def trackers(self) -> Mapping[str, Tracker]:
        return trackers_of(self.trainer, self.exp_manager)

    @model_validator(mode="after")
    def _has_an_end(self) -> Self:
        problems = self.trainer.sft.find_missing_end("trainer.sft", sample=self.model.data.sample)
        problems += find_conflicts(_mirrors(self))
        problems += find_half_weights(self.model.megatron_amp_O2, self.trainer)
        raise_all(ConfigError, problems)
        return self


def find_start_problems(config: Config, *, continued: bool) -> list[Problem]:
    """Whether there is one model to begin with: a checkpoint (``continued``), or sizes of one."""
    if not continued and config.model.peft.lora:
        what = "adapters belong to a model, and none is given"
        fix = "give -i model=REF, or set model.peft.peft_scheme=none to train all of a new model"
        return [Problem(key="model.peft.peft_scheme", what=what, got="lora", fix=fix)]
    if continued != (config.model.architecture is not None):
        return []
    what = "a checkpoint and sizes of a new model are given" if continued else "no model is given"
    fix = "give -i model=REF to train a checkpoint, or model.architecture to begin from nothing"
    return [Problem(key="model", what=what, fix=f"{fix}; not both")]


def _mirrors(config: Config) -> list[tuple[str, Any, str, Any]]:
    """Keys that repeat another one: ``(key, value, the other key, its value)``."""
    model, trainer, sft = config.model, config.trainer, config.trainer.sft
    batch_key = "model.data.train_ds.global_batch_size"
    batch_size = model.data.train_ds.global_batch_size
    return [
        ("model.seed", model.seed, "seed", config.seed),
        ("model.global_batch_size", model.global_batch_size, batch_key, batch_size),
        ("trainer.max_epochs", trainer.max_epochs, "trainer.sft.max_epochs", sft.max_epochs),
        ("trainer.max_steps", trainer.max_steps, "trainer.sft.max_steps", sft.max_steps),
    ]
