"""A model on disk: sizes, weights and tokenizer, the same for every division.

::

    model_config.json   the sizes (ModelConfig)
    weights/            torch_dist
    tokenizer/          tokenizer.json, tokenizer_config.json, chat_template.jinja
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from nemotron_style.runtime.errors import InputError, Problem, raise_all
from nemotron_style.runtime.store.record import Artifact
from nemotron_style.steps.blocks.checkpoint import torch_dist
from nemotron_style.steps.blocks.checkpoint.families.tensors import full_shapes
from nemotron_style.steps.blocks.checkpoint.torch_dist_stream import Read, read_full, write_full
from nemotron_style.steps.blocks.model.language_model import (
    LanguageModel,
    build_model,
    construct,
    unwrap,
    wrap,
)
from nemotron_style.steps.blocks.model.rank_zero import is_rank_zero, share_from_rank_zero
from nemotron_style.steps.blocks.model.sharded_tensor import sharded_weights, whole_weights
from nemotron_style.steps.blocks.settings.json_model import read_json_model
from nemotron_style.steps.blocks.settings.model_config import ModelConfig
from nemotron_style.steps.blocks.settings.parallel_config import KEEP_ALL, Activations

CONFIG, WEIGHTS, TOKENIZER = "model_config.json", "weights", "tokenizer"


def save_model(model: nn.Module, path: Path, *, config: ModelConfig, tokenizer: Path) -> None:
    """Write a checkpoint into the directory ``path``; ``tokenizer`` is a directory to copy.

    Every rank calls it, with the same path on a file system that all of them see.
    """
    if is_rank_zero():
        _write_surroundings(path, config=config, tokenizer=tokenizer)
    torch_dist.write(sharded_weights(unwrap(model)), path / WEIGHTS)


def copy_model(
    read: Read, path: Path, *, config: ModelConfig, dtype: torch.dtype, tokenizer: Path
) -> None:
    """The same by one process that holds one tensor at a time; ``read`` returns each by name.

    The tensors are those of :func:`full_shapes`, of type ``dtype``.
    """
    _write_surroundings(path, config=config, tokenizer=tokenizer)
    with torch.device("meta"):
        model = construct(LanguageModel, config, dtype=dtype)
    write_full(sharded_weights(model), path / WEIGHTS, read)


def _write_surroundings(path: Path, *, config: ModelConfig, tokenizer: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)
    (path / CONFIG).write_text(json.dumps(config.model_dump(), indent=2) + "\n")
    shutil.copytree(tokenizer, path / TOKENIZER, dirs_exist_ok=True)


def read_config(path: Path) -> ModelConfig:
    """The sizes of a checkpoint. Raises InputError for a file that holds anything else."""
    absent = Problem(
        where=str(path),
        what="is not a checkpoint: there is no model_config.json",
        fix="give a directory that a training or conversion step has written",
    )
    return read_json_model(ModelConfig, path / CONFIG, absent=absent)


def check_checkpoint(path: Path) -> ModelConfig:
    """The sizes of a checkpoint that has all its parts. Raises InputError as load_model does."""
    config = read_config(path)
    stored = torch_dist.tensor_shapes(path / WEIGHTS)
    check_depth(stored, config.num_layers, where=str(path / CONFIG), key="num_layers")
    problems = compare_shapes(
        stored,
        full_shapes(config),
        where=str(path / WEIGHTS),
        config_file=CONFIG,
        unknown="a tensor belongs to another architecture",
    )
    if not (path / TOKENIZER / "tokenizer.json").is_file():
        missing = Problem(
            where=str(path),
            key=f"{TOKENIZER}/tokenizer.json",
            what="the checkpoint has no tokenizer",
            fix="a model without its tokenizer cannot be trained or sampled; add the directory",
        )
        problems.insert(0, missing)
    raise_all(InputError, problems)
    return config


def load_model(
    path: Path,
    *,
    dtype: torch.dtype = torch.float32,
    ddp: bool = True,
    distributed_optimizer: bool = False,
    activations: Activations = KEEP_ALL,
) -> tuple[nn.Module, ModelConfig]:
    """This rank's part of a checkpoint's model, for the division in force, and its sizes.

    Every rank calls it. An optimizer for CUDA keeps master weights of its own: build it after
    this. Raises InputError, with every reason, when the directory lacks a part or its weights do
    not fit its sizes.
    """
    config = check_checkpoint(path)
    model = unwrap(
        build_model(config, dtype=dtype, ddp=False, initial=None, activations=activations)
    )
    weights = torch_dist.read(sharded_weights(model), path / WEIGHTS)
    model.load_state_dict(weights, strict=False)  # `_extra_state` is not stored
    if not ddp:
        return model, config
    return wrap(model, distributed_optimizer=distributed_optimizer), config


def recorded_weights_digest(artifact: Artifact) -> str:
    """The weights digest in a checkpoint's record, or else that of its files."""
    return str(artifact.facts.get("weights_digest") or weights_digest(artifact.path))


def weights_digest(source: nn.Module | Path) -> str:
    """``sha256:…`` over name, type, shape and bytes of every full tensor, in order of names.

    It is the same for a model and for its checkpoint, for every division and file layout. Every
    rank calls it with a model; with a path any rank may.
    """
    weights: Iterable[tuple[str, Tensor]]
    weights = read_full(source / WEIGHTS) if isinstance(source, Path) else full_weights(source)
    digest = WeightsDigest()
    for _ in digest.track(weights):
        pass
    return digest.text


def written_digest(path: Path) -> str:
    """The weights digest of a checkpoint that all ranks have written, on every rank.

    Rank zero reads it from the files, one tensor at a time: no rank has to hold the whole model.
    """
    return share_from_rank_zero(lambda: weights_digest(path))


class WeightsDigest:
    """The weights digest of whole tensors, taken while they pass on their way to something else."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def track(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Pass tensors on, which come in the order of their names."""
        for name, whole in weights:
            self._hash.update(f"{name}\n{whole.dtype}\n{list(whole.shape)}\n".encode())
            # bytes as they lie in memory; numpy has no bfloat16
            self._hash.update(whole.contiguous().view(-1).view(torch.uint8).numpy().data)
            yield name, whole

    @property
    def text(self) -> str:
        """``sha256:…`` of what has passed."""
        return f"sha256:{self._hash.hexdigest()}"


def full_weights(model: nn.Module, *, adapters: bool = False) -> list[tuple[str, Tensor]]:
    """Every tensor whole, in the order of names, on the CPU of every rank; every rank calls it.

    The model's own weights, or those of its ``adapters``.
    """
    weights = whole_weights(unwrap(model), adapters=adapters)
    return [(name, whole.cpu()) for name, whole in weights]


def check_depth(stored: Collection[str], layers: int, *, where: str, key: str) -> None:
    """Raise InputError for more layers than there are tensors, of which a layer has several.

    It comes before the tensors of all layers are listed, to be compared one by one.
    """
    if layers > len(stored):
        what = "promises more layers than the weights have tensors"
        allowed = f"{len(stored)} at most"
        raise InputError(Problem(where=where, key=key, what=what, got=str(layers), allowed=allowed))


def compare_shapes(
    stored: Mapping[str, Sequence[int]],
    expected: Mapping[str, Sequence[int]],
    *,
    where: str,
    config_file: str,
    unknown: str,
) -> list[Problem]:
    """Every tensor that is missing, of another shape than ``config_file`` says, or ``unknown``."""
    problems = [
        Problem(where=where, key=name, what="a tensor is missing")
        for name in expected
        if name not in stored
    ]
    problems += [
        Problem(
            where=where,
            key=name,
            what=f"a tensor has another shape than {config_file} says",
            got=str(list(stored[name])),
            allowed=str(list(shape)),
        )
        for name, shape in expected.items()
        if name in stored and tuple(stored[name]) != tuple(shape)
    ]
    strange = sorted(set(stored) - set(expected))
    return problems + [Problem(where=where, key=name, what=unknown) for name in strange]
