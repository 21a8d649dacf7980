"""Whether a model and its Hugging Face files compute the same: logits of both on fixed rows.

The other side is transformers where it is installed, else :mod:`reference_model`, which reads the
files by their own meaning. Reading them back through the conversion would agree with any mistake
in it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nemotron_style.runtime.errors import Problem, StepFailed
from nemotron_style.steps.blocks.checkpoint.families.tensors import EMBEDDING, hf_names
from nemotron_style.steps.blocks.checkpoint.hf_config import (
    keep_meaning,
    parse_sizes,
    read_family,
    read_settings,
)
from nemotron_style.steps.blocks.checkpoint.reference_model import reference_logits
from nemotron_style.steps.blocks.checkpoint.safetensors_folder import TensorFolder
from nemotron_style.steps.blocks.checkpoint.streamed_model import (
    CHECKED_TYPE,
    WeightStream,
    parameters_without_memory,
)
from nemotron_style.steps.blocks.model.device import prepare_device
from nemotron_style.steps.blocks.model.language_model import unwrap
from nemotron_style.steps.blocks.model.norm import widen
from nemotron_style.steps.blocks.model.prefix_packing import Row, pack_rows


@dataclass(frozen=True)
class LogitParity:
    """The largest difference between the logits of both sides, and the largest logit.

    ``by`` is the program that computed the other side.
    """

    by: str
    rows: int
    tokens: int
    max_logit_difference: float
    largest: float

    def note(self) -> dict[str, Any]:
        """The facts of a record."""
        return {"check": {"by": self.by, "rows": self.rows, "tokens": self.tokens}} | {
            "max_logit_difference": self.max_logit_difference,
            "largest_logit": self.largest,
        }

    def require(self, limit: float, *, where: str) -> None:
        """Raise StepFailed when the difference is above ``limit``, or not a number.

        Beyond logits of 10 the limit grows with the largest one, as rounding does.
        """
        allowed = limit * max(1.0, self.largest / 10)
        if self.max_logit_difference <= allowed:
            return
        raise StepFailed(
            Problem(
                where=where,
                key="max_logit_difference",
                what=f"the converted model computes something else, as {self.by} sees it",
                got=f"{self.max_logit_difference:.3g}, with logits up to {self.largest:.3g}",
                allowed=f"{allowed:.3g}",
                fix="only where you know it to be a rounding error, set the limit higher",
            )
        )


def sample_rows(vocabulary: int, *, rows: int, tokens: int, seed: int) -> Tensor:
    """Random token ids ``[rows, tokens]``, uniform over ``vocabulary``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocabulary, (rows, tokens), generator=generator)


@torch.inference_mode()
def model_logits(model: nn.Module, tokens_BS: Tensor) -> Tensor:
    """Logits ``[B, S, vocabulary]`` on the CPU, of a model that is whole on this rank."""
    inner = unwrap(model)
    # pack_rows may leave the last token of a row out of the input, so one is added to be left out.
    rows = [Row([*ids, 0], [False] * (len(ids) + 1)) for ids in tokens_BS.tolist()]
    packed = pack_rows(rows).to(prepare_device())  # where its weights are, once they are read
    states = inner.hidden(packed)[: tokens_BS.shape[1]]
    return widen(inner.head(states).transpose(0, 1)).cpu()


def compare_logits(
    ours: Tensor, path: Path, tokens_BS: Tensor, *, dtype: torch.dtype | None = None
) -> LogitParity:
    """``ours`` against the logits of the Hugging Face files in ``path``, computed in float64.

    Where one side has more rows of vocabulary than the other, those that both have count. With
    ``dtype`` the weights in ``path`` are rounded to it first.
    """
    by, theirs = hugging_face_logits(path, tokens_BS, dtype=dtype)
    shared = min(ours.shape[-1], theirs.shape[-1])
    difference = (ours[..., :shared] - theirs[..., :shared]).abs().max()
    rows, tokens = tokens_BS.shape
    return LogitParity(by, rows, tokens, float(difference), float(theirs.abs().max()))


def hugging_face_logits(
    path: Path, tokens_BS: Tensor, *, dtype: torch.dtype | None = None
) -> tuple[str, Tensor]:
    """The program that computed the logits of the files in ``path``, and the logits.

    They are computed one tensor at a time and in float64, but for the norms, the shares of
    attention and the rotary angles, which transformers rounds to float32; and come back on the CPU.
    """
    tokens = tokens_BS.to(prepare_device())
    settings, folder = read_settings(path), TensorFolder(path)
    classes = _transformers_classes(settings)

    def read(name: str) -> Tensor:
        if name not in folder.shapes:  # a head that is tied to the embeddings
            [name] = hf_names(EMBEDDING, parse_sizes(settings, path))
        return folder.read(name).to(dtype or folder.types[name])

    if classes is None:
        logits = reference_logits(settings, read, tokens, dtype=CHECKED_TYPE)
        return "plain torch", logits.cpu()
    import transformers

    # Of the file only what the family says: other keys reach code that transformers fetches.
    config_class, model_class = classes
    meaning = keep_meaning(settings) | {"pad_token_id": None}  # a default may be above small tables
    with parameters_without_memory():
        model = model_class._from_config(
            config_class.from_dict(meaning), attn_implementation="eager"
        ).eval()
    WeightStream(model, read)
    with torch.inference_mode():
        logits = model(input_ids=tokens, use_cache=False).logits
    return f"transformers {transformers.__version__}", logits.cpu()


def _transformers_classes(settings: Mapping[str, Any]) -> tuple[Any, Any] | None:
    """Config and model of the family; None where transformers is not installed or too old."""
    if importlib.util.find_spec("transformers") is None:
        return None
    import transformers

    family = read_family(settings)
    names = (family.config_class, family.causal_class)
    config, model = (getattr(transformers, name, None) for name in names)
    return (config, model) if config and model else None
