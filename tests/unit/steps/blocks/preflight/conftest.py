"""A small checkpoint as a Hugging Face folder: everything that is looked at, and no weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from hub_folder import CONFIG, write_json
from nemotron_style.steps.blocks.data.chat_format import ChatPromptTokens
from nemotron_style.steps.blocks.data.tokenizer_training import train_tokenizer


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["What is two and two? It is four."], 300, folder, tokens=ChatPromptTokens())
    return folder


@pytest.fixture
def hub(tmp_path: Path, tokenizer_folder: Path) -> Path:
    folder = tmp_path / "hub"
    folder.mkdir()
    for file in tokenizer_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    write_json(folder / "config.json", CONFIG)
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return folder
