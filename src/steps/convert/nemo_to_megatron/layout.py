"""Which files of a model are its weights; those that would have to be unpickled are refused."""

from __future__ import annotations

import re
from typing import NamedTuple

from nemotron_style.runtime.errors import InputError, Problem
from nemotron_style.steps.convert.nemo_to_megatron.archive import ModelFiles

NEMO_CONFIG = "model_config.yaml"
NEMO_WEIGHTS = "model_weights"
CONTENTS = ".metadata"
COMMON = "common.pt"

# Names of weights that cannot be read here: what they are, and how to make others of them.
_UNREADABLE = (
    (
        # In a folder for each rank, where the model was divided.
        re.compile(r"(.*/)?model_weights\.ckpt"),
        "pickled weights are not read: a pickle can run any code",
        "where you trust it, load it in NeMo with mcore_gpt=True and save it again, which "
        "writes model_weights/ as torch_dist",
    ),
    (
        re.compile(r"(.*/)?mp_rank_\d+(_\d+)*/(model_optim_rng|model_rng)\.pt"),
        "pickled weights are not read: a pickle can run any code",
        "where you trust it, load it in Megatron-LM and save it with --ckpt-format torch_dist",
    ),
    (
        re.compile(r"(.*/)?\.zarray"),
        "weights in zarr are not read",
        "load it in NeMo and save it again with model.dist_ckpt_format=torch_dist",
    ),
    (
        re.compile(r"context/(io\.json|model\.yaml)"),
        "is a checkpoint of NeMo 2, whose description is code",
        "export it in NeMo with llm.export_ckpt(target='hf'), and give the folder that it writes",
    ),
)


class Layout(NamedTuple):
    """Where the parts of a model are: ``weights`` is a folder, and ``config`` NeMo's, or empty."""

    weights: str
    config: str


def find_layout(files: ModelFiles) -> Layout:
    """The parts of a model of NeMo or Megatron-LM.

    Raises InputError for weights that cannot be read, and for files that are neither.
    """
    config = NEMO_CONFIG if NEMO_CONFIG in files.spans else ""
    weights = NEMO_WEIGHTS if config else ""
    if CONTENTS in files.inside(weights):
        return Layout(weights, config)
    for pattern, what, fix in _UNREADABLE:
        for name in files.spans:
            if pattern.fullmatch(name):
                raise InputError(Problem(where=files.where, key=name, what=what, fix=fix))
    raise InputError(
        Problem(
            where=files.where,
            what="is no model of NeMo or Megatron-LM",
            got=", ".join(sorted(files.spans)[:5]) or "no files",
            allowed=f"{NEMO_CONFIG} and {NEMO_WEIGHTS}/{CONTENTS}, or {CONTENTS} and {COMMON}",
        )
    )
