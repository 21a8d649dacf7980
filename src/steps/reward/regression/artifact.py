"""The trained model as Hugging Face's ``...ForSequenceClassification`` of its family has it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nemotron_style.runtime.errors import InputError, Problem
from nemotron_style.runtime.text_file import read_json_file
from nemotron_style.steps.blocks.checkpoint import torch_dist
from nemotron_style.steps.blocks.checkpoint.hf_config import (
    CONFIG_FILE,
    build_settings,
    read_family,
)
from nemotron_style.steps.blocks.checkpoint.hf_weights import export_tensor
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import WeightsDigest
from nemotron_style.steps.blocks.checkpoint.safetensors_folder import write_tensors
from nemotron_style.steps.blocks.checkpoint.torch_dist_stream import WeightFolder
from nemotron_style.steps.blocks.data.chat.interface import Chat
from nemotron_style.steps.blocks.data.conversation import Conversation, Turn
from nemotron_style.steps.blocks.data.tokenizer import Tokenizer
from nemotron_style.steps.blocks.data.tokenizer_files import (
    GENERATION_FILE,
    SPECIAL_FILE,
    export_tokenizer,
)
from nemotron_style.steps.blocks.model.language_model import unwrap
from nemotron_style.steps.blocks.model.rank_zero import share_from_rank_zero
from nemotron_style.steps.blocks.model.sharded_tensor import sharded_weights
from nemotron_style.steps.blocks.reward.config import RewardConfig, merged
from nemotron_style.steps.blocks.reward.regression_model import HEAD
from nemotron_style.steps.blocks.settings.model_config import ModelConfig

MERGED = "score"
MAX_FILE_BYTES = 5_000_000_000


def merge_outputs(config: RewardConfig) -> tuple[RewardConfig, list[float]]:
    """The config of a model whose one output is the score, and what it takes of each output."""
    parts, scale = merged(config.outputs, config.weights, config.scale)
    one = {"outputs": (MERGED,), "weights": {MERGED: 1.0}, "scale": {MERGED: scale}}
    return config.model_copy(update=one), parts


def write_weights(
    model: nn.Module, path: Path, *, sizes: ModelConfig, mix: list[float] | None = None
) -> str:
    """Write trunk and head to ``path``; the weights digest. Every rank calls it.

    With ``mix`` the head has one output, made of that much of each.
    """
    # All ranks write their parts, and rank zero reads them back tensor by tensor: gathered over
    # the network, the model would be whole in the memory of every rank.
    parts = path.with_name(f"{path.name}.parts")
    torch_dist.write(sharded_weights(unwrap(model)), parts)

    def join() -> str:
        digest = WeightsDigest()
        folder = WeightFolder(parts)
        outline = _units(folder.outline(), sizes, mix)
        units = _units(digest.track(folder.weights()), sizes, mix)
        write_tensors(path, units, max_bytes=MAX_FILE_BYTES, outline=outline)
        shutil.rmtree(parts)
        return digest.text

    return share_from_rank_zero(join)


def write_settings(
    path: Path,
    *,
    sizes: ModelConfig,
    config: RewardConfig,
    dtype: str,
    token_ids: Mapping[str, Any],
) -> None:
    """Write ``config.json`` and ``reward_config.json``; ``dtype`` is that of the trunk."""
    config.write(path)
    settings = build_settings(sizes, dtype=dtype, token_ids=token_ids)
    settings |= {
        "architectures": [read_family(settings).scoring_class],
        "num_labels": len(config.outputs),
        "id2label": {str(index): name for index, name in enumerate(config.outputs)},
        "label2id": {name: index for index, name in enumerate(config.outputs)},
        "problem_type": "regression",
        "use_cache": False,
    }
    _write_json(path / CONFIG_FILE, settings)


def choose_padding(chat: Chat) -> str:
    """A control token that no conversation holds.

    Raises InputError where a chat template writes all that there are.
    """
    if chat.tokens:
        return chat.tokens.label_start
    held = set(chat.conversation_ids(Conversation("", (Turn("User", "Hi."),), "Hello.")))
    known = chat.tokenizer.control_ids
    wanted = chat.tokenizer.special_tokens.get("pad_token", "")
    for token in [wanted, *known]:
        if token in known and known[token] not in held and token.strip():
            return token
    raise InputError(
        Problem(
            where=str(chat.tokenizer.path),
            what="every control token stands in a conversation, so none is left to pad rows with",
            got=", ".join(known),
            fix="add a special token to the tokenizer, and convert the model again",
        )
    )


def write_tokenizer(source: Path, target: Path, *, pad_token: str) -> dict[str, Any]:
    """Write the tokenizer with ``pad_token``; its token ids, as ``config.json`` has them.

    Hugging Face's head reads at the last token that is not padding. A conversation ends with
    ``turn_start``, which pads texts elsewhere, and so it would read one token too early: the
    padding has to be a token that no conversation holds.
    """
    ids = export_tokenizer(source, target)
    (target / GENERATION_FILE).unlink()  # this model does not generate
    for name in ("tokenizer_config.json", SPECIAL_FILE):
        file = target / name
        settings = read_json_file(file, InputError) if file.is_file() else {}
        _write_json(file, settings | {"pad_token": pad_token})
    [pad_id] = Tokenizer(source).encode(pad_token, control=True)
    return ids | {"pad_token_id": pad_id}


def _units(
    weights: Iterable[tuple[str, Tensor]], sizes: ModelConfig, mix: list[float] | None
) -> Iterator[Mapping[str, Tensor]]:
    for name, whole in weights:
        if name != HEAD:
            yield export_tensor(name, whole, sizes)
        elif mix is None:
            yield {HEAD: whole}
        else:
            row = torch.tensor(mix, dtype=torch.float64, device=whole.device) @ whole.double()
            yield {HEAD: row[None].float()}


def _write_json(file: Path, content: Mapping[str, object]) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8", newline="\n")
