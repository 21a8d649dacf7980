"""What a run starts from: a checkpoint, or sizes with a tokenizer trained here."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from nemotron_style.runtime.errors import InputError, raise_all
from nemotron_style.runtime.step.context import StepContext
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import TOKENIZER, read_config
from nemotron_style.steps.blocks.data.chat.interface import Chat
from nemotron_style.steps.blocks.data.chat.opening import open_chat
from nemotron_style.steps.blocks.data.chat_format import ChatFormat, ChatPromptTokens
from nemotron_style.steps.blocks.data.tokenizer import Tokenizer
from nemotron_style.steps.blocks.data.tokenizer_training import train_tokenizer
from nemotron_style.steps.blocks.model.language_model import build_model
from nemotron_style.steps.blocks.settings.model_config import ModelConfig
from nemotron_style.steps.blocks.training.launch_check import find_launch_problems
from nemotron_style.steps.blocks.training.trained_model import Adaptation, load_trained_model
from nemotron_style.steps.sft.chat.config import Config, find_start_problems
from nemotron_style.steps.sft.chat.row import read_texts, row_reader


@dataclass(frozen=True)
class Start:
    """Tokenizer, chat format and sizes of the model, known before any weight is."""

    tokenizer: Tokenizer
    chat: Chat
    sizes: ModelConfig
    adaptation: Adaptation | None = None

    def build(self, config: Config, ctx: StepContext) -> nn.Module:
        """This rank's part of the model: that of the input, or one initialised by the seed."""
        dtype = torch.bfloat16 if config.trainer.half else torch.float32
        optim, activations = config.model.optim, config.model.activations
        if ctx.optional_input("model"):
            return load_trained_model(
                ctx, self.adaptation, dtype=dtype, optim=optim, activations=activations
            )
        assert config.model.architecture is not None
        return build_model(
            self.sizes,
            seed=config.seed,
            dtype=dtype,
            initial=config.model.architecture.init_method_std,
            distributed_optimizer=optim.distributed,
            activations=activations,
        )


def prepare_start(config: Config, ctx: StepContext) -> Start:
    """Find the tokenizer, the chat format and the sizes, or make them from the training data.

    Raises:
        InputError: parts of the checkpoint are missing or do not fit the config, or the adapter to
            go on from belongs to another one.
    """
    checkpoint, tokens = ctx.optional_input("model"), config.model.data.chat_prompt_tokens
    if checkpoint:
        tokenizer = Tokenizer(checkpoint.path / TOKENIZER)
        adaptation = Adaptation.of(ctx, config.model.peft, seed=config.seed)
        sizes = read_config(checkpoint.path)
        return Start(tokenizer, open_chat(tokenizer, tokens), sizes, adaptation)
    assert config.model.architecture is not None, "checked by check_job"
    tokenizer = _make_tokenizer(config, ctx, tokens or ChatPromptTokens())
    sizes = config.model.architecture.sizes(tokenizer.vocab_size)
    return Start(tokenizer, open_chat(tokenizer), sizes)


def check_job(config: Config, ctx: StepContext) -> None:
    """Refuse what the config and the job disagree on, before any work; all of it at once."""
    problems = find_launch_problems(config.trainer, world_size=ctx.world_size)
    continued = ctx.optional_input("model") is not None
    problems += find_start_problems(config, continued=continued)
    raise_all(InputError, problems)


def _make_tokenizer(config: Config, ctx: StepContext, tokens: ChatPromptTokens) -> Tokenizer:
    """Train a tokenizer on every text of the training file; rank zero does, the others read it."""
    path = ctx.run_dir / TOKENIZER
    if ctx.is_first:
        assert config.model.architecture is not None
        texts = read_texts(ctx.input("data").path, ChatFormat(tokens), row_reader(config))
        size = config.model.architecture.tokenizer_vocab_size
        train_tokenizer(texts, size, path, tokens=tokens)
    dist.barrier()
    return Tokenizer(path)
