"""A project in a temporary folder: one manifest, two configs, a config class of its own."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

MANIFEST = """
[step]
id = "toy/train"
name = "Toy training"
category = "toy"
description = "Trains a toy. It is small."
aliases = ["toy/learn"]

[run]
entrypoint = "toy_step_config:run"
config = "toy_step_config:Config"

[[consumes]]
name = "model"
type = "checkpoint_megatron"
config_key = "model.restore_from_path"

[[consumes]]
name = "data"
type = "training_jsonl"
config_key = "data.path"
required = false

[[produces]]
name = "model"
type = "checkpoint_megatron"

[[parameters]]
name = "model.optim.lr"
description = "Peak learning rate."

[[strategies]]
when = "the loss jumps"
then = "lower the rate"

[[errors]]
name = "no_data"
recovery = "adopt some"
"""

SCHEMA = """
from typing import Any, Literal

from pydantic import Field, model_validator

from nemotron_style.runtime.config.model import Section, StepConfig, cosmetic


class Optim(Section):
    name: Literal["adamw", "sgd"] = "adamw"
    lr: float
    betas: tuple[float, float] = (0.9, 0.999)


class Model(Section):
    restore_from_path: str
    encoder_seq_length: int = Field(default=128, gt=0)
    optim: Optim
    extra: dict[str, Any] = {}


class Data(Section):
    path: str | None = None
    files: list[str] = []


class Config(StepConfig):
    model: Model
    data: Data = Data()
    log_every: int = cosmetic(10)
    steps: int = 4
    limit: int | None = None

    @model_validator(mode="after")
    def _check(self) -> "Config":
        if self.limit is not None and self.limit < self.steps:
            raise ValueError(f"limit ({self.limit}) is below steps ({self.steps})")
        return self


def run(config, ctx):
    pass
"""

DEFAULT = """
model:
  restore_from_path: ???
  optim:
    lr: 1e-4
"""

TINY = """
defaults: default.yaml
steps: 2
"""


@dataclass(frozen=True)
class Toy:
    """The temporary project; ``write`` makes or replaces one of its files."""

    root: Path

    @property
    def folder(self) -> Path:
        """The folder of the step ``toy/train``."""
        return self.root / "manifests" / "toy" / "train"

    def write(self, name: str, text: str) -> Path:
        """Write ``text`` to ``name``, relative to the project."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    def write_step(self, name: str, text: str) -> Path:
        """Write a file of the step ``toy/train``."""
        return self.write(f"manifests/toy/train/{name}", text)


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Toy]:
    """A project with the step ``toy/train``, and the working directory inside it."""
    project = Toy(tmp_path / "project")
    project.write("pyproject.toml", "")
    project.write("toy_step_config.py", SCHEMA)
    project.write_step("step.toml", MANIFEST)
    project.write_step("default.yaml", DEFAULT)
    project.write_step("tiny.yaml", TINY)
    monkeypatch.chdir(project.root)
    monkeypatch.syspath_prepend(str(project.root))
    monkeypatch.delenv("NEMOTRON_ENV_FILE", raising=False)
    sys.modules.pop("toy_step_config", None)
    yield project
    sys.modules.pop("toy_step_config", None)
