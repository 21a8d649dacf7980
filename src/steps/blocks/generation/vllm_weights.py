"""A model's weights and sizes as files that vLLM reads: a Hugging Face folder.

vLLM's CPU attention knows a few widths of a head. A model of another width is written with wider
heads that compute the same: queries, keys and values get zeros, rotary positions turn the part
that was there, and queries grow by what the wider head's scale takes from them. That factor is
rounded in the type of the weights, all else is exact.

Only models without biases, norms of heads and the like are written wider.

Tied embeddings are written twice: vLLM 0.32 ties them when it starts, and leaves the head as it
was when weights are loaded anew. Gemma's embeddings stay tied: vLLM has no head for it and takes
its logits from the embeddings themselves.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Mapping
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
from nemotron_style.steps.blocks.model.lora import adapted_layers, merged_weight
from nemotron_style.steps.blocks.model.sharded_tensor import sharded_weights
from nemotron_style.steps.blocks.settings.model_config import ModelConfig

CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
BLOCK_TOKENS = 128
"""Tokens of a block of vLLM's cache, at most."""

NO_HEAD = ("gemma", "gemma2", "gemma3")
"""Families that vLLM has without a head."""

_IN_MEMORY, _FILE_BYTES = Path("/dev/shm"), 4 * 10**9


@dataclass(frozen=True)
class Files:
    """How a model is written: its sizes, the type of its weights, and the width of its heads."""

    config: ModelConfig
    dtype: torch.dtype
    head_size: int

    @property
    def ties(self) -> bool:
        """Whether the embeddings are written once, as vLLM has them for this family."""
        return self.config.architecture in NO_HEAD

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
        sizes = self.config.model_copy(update={"tie_embeddings": self.ties})
        settings = build_settings(sizes, dtype=self.type_name, token_ids={})
        text = json.dumps(settings | self._head_settings(), indent=2)
        (path / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")

    def write_weights(self, model: nn.Module, path: Path) -> None:
        """Write the weights of a model that is whole on this rank, as they are now.

        Adapters become a part of them.
        """
        weights = _whole_weights(model, head=not self.ties)
        outline = ((name, part.to("meta")) for name, part in weights)
        layers = {f"{name}.weight": layer for name, layer in adapted_layers(unwrap(model))}
        merged = (
            (name, merged_weight(layers[name]) if name in layers else part)
            for name, part in weights
        )
        units, outlines = (
            map(self._prepare, export_weights(pairs, self.config)) for pairs in (merged, outline)
        )
        write_tensors(path, units, max_bytes=_FILE_BYTES, outline=outlines)

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
        return {name: part.to(self.dtype) for name, part in wide.items()}

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

    Raises StepFailed where vLLM has no attention for heads of this width, or no such head.
    """
    parameter = next(model.parameters())
    size, sizes = config.head_size, CPU_HEAD_SIZES
    wide: int | None = size
    if parameter.device.type == "cpu" and size not in sizes:
        # biases, norms of heads, joined projections and scaled positions are not written wider
        widens = set(config.switched) <= {"kv_channels"}
        wide = next((known for known in sizes if known >= size), None) if widens else None
        allowed = f"up to {sizes[-1]}" if widens else ", ".join(map(str, sizes))
        if wide is None:
            what = "vLLM's CPU build has no attention for heads of this width"
            raise _unknown_to_vllm("head_size", what, str(size), allowed)
    if config.architecture in NO_HEAD and not config.tie_embeddings:
        what = "vLLM takes the logits of this family from its embeddings"
        raise _unknown_to_vllm("tie_embeddings", what, "False", "True")
    return Files(config, dtype or parameter.dtype, wide)


def _unknown_to_vllm(key: str, what: str, got: str, allowed: str) -> StepFailed:
    where, fix = "generation engine vllm", "generation=in_process computes it"
    return StepFailed(Problem(where=where, key=key, what=what, got=got, allowed=allowed, fix=fix))


def make_folder(bytes_needed: int) -> Path:
    """A new folder for that many bytes, twice over: in memory where there is room, else on disk."""
    roomy = _IN_MEMORY.is_dir() and shutil.disk_usage(_IN_MEMORY).free > 2 * bytes_needed
    place = _IN_MEMORY if roomy else None
    return Path(tempfile.mkdtemp(prefix="nemotron-style-vllm-", dir=place))


def _whole_weights(model: nn.Module, *, head: bool) -> list[tuple[str, Tensor]]:
    """The model's own tensors by canonical name; ``head``: with one, even where it is tied."""
    inner = unwrap(model)
    names = {name: part.key for name, part in sharded_weights(inner).items()}
    tensors = {
        names[name]: weight.detach() for name, weight in inner.named_parameters() if name in names
    }
    if head and HEAD not in tensors:
        tensors[HEAD] = tensors[EMBEDDING]
    return sorted(tensors.items())
