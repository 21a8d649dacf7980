"""A model's weights and sizes as files that vLLM reads: a Hugging Face folder.

vLLM's CPU attention knows a few widths of a head. A model of another width is written with wider
heads that compute the same: queries, keys and values get zeros, rotary positions turn the part
that was there, and queries grow by what the wider head's scale takes from them. That factor is
rounded in the type of the weights, all else is exact.

Tied embeddings are written twice: vLLM 0.32 ties them when it starts, and leaves the head as it
was when weights are loaded anew.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nemotron_style.runtime.errors import Problem, StepFailed
from nemotron_style.steps.blocks.checkpoint.hf_config import CONFIG_FILE, build_settings
from nemotron_style.steps.blocks.checkpoint.hf_weights import EMBEDDING, HEAD, export_weights
from nemotron_style.steps.blocks.checkpoint.safetensors_folder import write_tensors
from nemotron_style.steps.blocks.model.language_model import unwrap
from nemotron_style.steps.blocks.model.sharded_tensor import shards
from nemotron_style.steps.blocks.settings.model_config import ModelConfig

CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
BLOCK_TOKENS = 128
"""Tokens of a block of vLLM's cache, at most."""

_IN_MEMORY, _FILE_BYTES = Path("/dev/shm"), 4 * 10**9


@dataclass(frozen=True)
class Files:
    """How a model is written: its sizes, the type of its weights, and the width of its heads."""

    config: ModelConfig
    dtype: torch.dtype
    head_size: int

    @property
    def type_name(self) -> str:
        """``float32`` and the like."""
        return str(self.dtype).removeprefix("torch.")

    def cache_bytes(self, rows: int) -> int:
        """What the keys and values of ``rows`` responses of full length take."""
        config = self.config
        blocks = rows * math.ceil(config.max_sequence_length / BLOCK_TOKENS) + 1
        width = 2 * config.num_layers * config.num_query_groups * self.head_size
        return blocks * BLOCK_TOKENS * width * self.dtype.itemsize

    def write_settings(self, path: Path) -> None:
        """Write ``config.json``, without ids of control tokens: requests say what ends them."""
        sizes = self.config.model_copy(update={"tie_embeddings": False})
        settings = build_settings(sizes, dtype=self.type_name, token_ids={})
        text = json.dumps(settings | self._head_settings(), indent=2)
        (path / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")

    def write_weights(self, model: nn.Module, path: Path) -> None:
        """Write the weights of a model that is whole on this rank, as they are now."""
        units = export_weights(_whole_weights(model), self.config)
        write_tensors(path, map(self._prepare, units), max_bytes=_FILE_BYTES)

    def _head_settings(self) -> dict[str, Any]:
        size = self.config.head_size
        if size == self.head_size:
            return {}
        share = math.nextafter(size / self.head_size, 1)  # rounded down to a width again
        rope = {"rope_type": "default", "rope_theta": self.config.rope_theta}
        return {
            "head_dim": self.head_size,
            "rope_parameters": rope | {"partial_rotary_factor": share},
        }

    def _prepare(self, unit: Mapping[str, Tensor]) -> dict[str, Tensor]:
        wide = {name: self._widen(name, part) for name, part in unit.items()}
        return {name: part.to(self.dtype).cpu().contiguous() for name, part in wide.items()}

    def _widen(self, name: str, part: Tensor) -> Tensor:
        size, missing = self.config.head_size, self.head_size - self.config.head_size
        if not missing:
            return part
        if name.endswith("o_proj.weight"):
            return F.pad(part.unflatten(1, (-1, size)), (0, missing)).flatten(1)
        if not name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            return part
        scale = math.sqrt(self.head_size / size) if name.endswith("q_proj.weight") else 1.0
        return F.pad(part.unflatten(0, (-1, size)) * scale, (0, 0, 0, missing)).flatten(0, 1)


def plan_files(model: nn.Module, config: ModelConfig, dtype: torch.dtype | None) -> Files:
    """How a model is best written for the device it is on; ``dtype`` None keeps its weights' type.

    Raises StepFailed where vLLM has no attention for heads of this width.
    """
    parameter = next(model.parameters())
    size = config.head_size
    on_cpu = parameter.device.type == "cpu"
    wide = next((known for known in CPU_HEAD_SIZES if known >= size), None) if on_cpu else size
    if wide is None:
        raise StepFailed(
            Problem(
                where="generation engine vllm",
                key="head_size",
                what="vLLM's CPU build has no attention for heads of this width",
                got=str(size),
                allowed=f"up to {CPU_HEAD_SIZES[-1]}",
                fix="generation=in_process takes any width",
            )
        )
    return Files(config, dtype or parameter.dtype, wide)


def make_folder(bytes_needed: int) -> Path:
    """A new folder for that many bytes, twice over: in memory where there is room, else on disk."""
    roomy = _IN_MEMORY.is_dir() and shutil.disk_usage(_IN_MEMORY).free > 2 * bytes_needed
    place = _IN_MEMORY if roomy else None
    return Path(tempfile.mkdtemp(prefix="nemotron-style-vllm-", dir=place))


def _whole_weights(model: nn.Module) -> Iterable[tuple[str, Tensor]]:
    """Every tensor by its canonical name, gate and up projection joined, with a head of its own."""
    tensors: dict[str, Tensor] = {}
    for shard in shards(unwrap(model)):
        if shard.data.shape == shard.full_shape:
            tensors[shard.name] = shard.data
            continue
        whole = tensors.setdefault(shard.name, shard.data.new_empty(shard.full_shape))
        whole[shard.slices] = shard.data
    if HEAD not in tensors:
        tensors[HEAD] = tensors[EMBEDDING].clone()
    return sorted(tensors.items())
