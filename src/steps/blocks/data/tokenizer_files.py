"""A tokenizer's files on their way to Hugging Face tools and back, as they are.

``tokenizer.json``, ``tokenizer_config.json`` and the chat template have the same form on both
sides. What Hugging Face wants besides is derived from them: ``special_tokens_map.json``, and the
ids in ``generation_config.json`` that end a response.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from nemotron_style.runtime.errors import InputError, Problem, raise_all
from nemotron_style.runtime.text_file import read_json_file
from nemotron_style.steps.blocks.data.chat.interface import Chat
from nemotron_style.steps.blocks.data.chat.opening import open_chat
from nemotron_style.steps.blocks.data.chat_format import ChatFormat, ChatPromptTokens
from nemotron_style.steps.blocks.data.tokenizer import (
    GENERATION_FILE,
    MOST_BYTES,
    PROCESSOR_TEMPLATE_FILE,
    SPECIAL_FILE,
    TEMPLATE_FILE,
    Tokenizer,
)
from nemotron_style.steps.blocks.settings.hub_code import find_code_keys
from nemotron_style.steps.blocks.settings.model_config import ModelConfig

SETTINGS_FILE = "tokenizer_config.json"
CONFIG_FILE = "config.json"
FILES = (
    *("tokenizer.json", SETTINGS_FILE, SPECIAL_FILE, GENERATION_FILE),
    *(TEMPLATE_FILE, PROCESSOR_TEMPLATE_FILE),
    # the same words for tools that read no tokenizer.json
    *("added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model"),
)
NAMED_TEMPLATES = "additional_chat_templates"
"""Folder with templates for other purposes than the default, ``tool_use.jinja`` and the like."""
ROLES = ("bos_token", "eos_token", "pad_token")


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy those files of a tokenizer that exist from folder to folder.

    Raises InputError for settings that name code, which whoever reads the copy might fetch.
    """
    tokenizer = Tokenizer(source)
    raise_all(
        InputError,
        [
            *find_code_keys(tokenizer.settings, where=str(source / SETTINGS_FILE)),
            *find_code_keys(tokenizer.generation, where=str(source / GENERATION_FILE)),
        ],
    )
    target.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    for file in sorted((source / NAMED_TEMPLATES).glob("*.jinja")):
        (target / NAMED_TEMPLATES).mkdir(exist_ok=True)
        shutil.copyfile(file, target / NAMED_TEMPLATES / file.name)


def export_tokenizer(source: Path, target: Path) -> dict[str, int | None]:
    """Write a tokenizer as Hugging Face reads it; return its token ids for ``config.json``.

    The generation config that came with it is written as it came.
    """
    tokenizer = Tokenizer(source)
    copy_tokenizer(source, target)
    if not (target / SPECIAL_FILE).is_file():
        write_json(target / SPECIAL_FILE, tokenizer.special_tokens)
    ids = token_ids(tokenizer)
    if not (target / GENERATION_FILE).is_file():
        known = {name: number for name, number in ids.items() if number is not None}
        write_json(target / GENERATION_FILE, known)
    return ids


def import_tokenizer(source: Path, target: Path, *, tokens: ChatPromptTokens | None) -> Tokenizer:
    """Copy a tokenizer into a folder of its own; ``tokens`` set its chat format.

    The ids in the folder's ``config.json`` (several may end an answer) go into its generation
    config, since the model's own config has no place for them.

    Raises:
        InputError: there is no ``tokenizer.json``, it is stored with other chat tokens, or one of
            ``tokens`` is not a single id of it.
    """
    if not (source / "tokenizer.json").is_file():
        fix = "save it with transformers' fast tokenizer, which writes the file"
        what = "there is no tokenizer.json"
        raise InputError(Problem(where=str(source), key="tokenizer.json", what=what, fix=fix))
    if tokens:
        open_chat(Tokenizer(source), tokens)
    copy_tokenizer(source, target)
    file = source / CONFIG_FILE
    config = read_json_file(file, InputError) if file.is_file() else {}
    names = [f"{role}_id" for role in ROLES]
    ids = {name: config[name] for name in names if config.get(name) is not None}
    if ids:
        write_json(target / GENERATION_FILE, ids | Tokenizer(target).generation)
    if tokens:
        write_settings(target, tokens)
    return Tokenizer(target)


def check_vocabulary(tokenizer: Tokenizer, config: ModelConfig, *, where: str) -> None:
    """Raise InputError when the tokenizer has ids for which there is no row of the embedding."""
    if tokenizer.vocab_size <= config.vocab_size:
        return
    raise InputError(
        Problem(
            where=where,
            key="vocab_size",
            what="the tokenizer gives ids that the model has no rows for",
            got=str(config.vocab_size),
            allowed=f"at least {tokenizer.vocab_size}",
            fix="model.make_vocab_size_divisible_by adds rows when a model is imported",
        )
    )


def token_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    """``bos_token_id``, ``eos_token_id`` and ``pad_token_id``; None for a role that no id has.

    They are those of the generation config, where several ids may end an answer, or else those of
    the tokens that have the roles.
    """
    special = tokenizer.special_tokens
    ids = {role: tokenizer.encode(special.get(role, ""), control=True) for role in ROLES}
    derived = {f"{role}_id": own[0] if len(own) == 1 else None for role, own in ids.items()}
    return {name: tokenizer.generation.get(name, number) for name, number in derived.items()}


def write_settings(path: Path, tokens: ChatPromptTokens) -> None:
    """Write ``tokenizer_config.json`` and the chat template beside a ``tokenizer.json``.

    Settings that are there already stay, apart from those of the chat format and what ends a turn:
    that is said in three files, and all of them follow.
    """
    file = path / "tokenizer_config.json"
    kept = read_json_file(file, InputError, most=MOST_BYTES) if file.is_file() else {}
    kept.pop("chat_template", None)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        # else transformers 4 adds token_type_ids, which a Llama's generate refuses
        "model_input_names": ["input_ids", "attention_mask"],
        "pad_token": tokens.turn_start,
        **kept,
        "eos_token": tokens.turn_start,
        "chat_prompt_tokens": tokens.model_dump(),
    }
    write_json(file, settings)
    if (path / SPECIAL_FILE).is_file():
        named = read_json_file(path / SPECIAL_FILE, InputError)
        write_json(path / SPECIAL_FILE, named | {"eos_token": tokens.turn_start})
    tokenizer = Tokenizer(path)
    if tokenizer.generation:
        [end] = tokenizer.encode(tokens.turn_start, control=True)
        write_json(path / GENERATION_FILE, tokenizer.generation | {"eos_token_id": end})
    (path / PROCESSOR_TEMPLATE_FILE).unlink(missing_ok=True)
    shutil.rmtree(path / NAMED_TEMPLATES, ignore_errors=True)
    template = ChatFormat(tokens).template()
    (path / TEMPLATE_FILE).write_text(template, encoding="utf-8", newline="\n")


def store_chat(path: Path, chat: Chat) -> None:
    """Write the chat format that a model was trained in beside its tokenizer in ``path``.

    That is done where the config gave ``chat_prompt_tokens`` that the checkpoint did not have;
    everything else is there already.
    """
    if chat.tokens and "chat_prompt_tokens" not in Tokenizer(path).settings:
        write_settings(path, chat.tokens)


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write ``content`` as Hugging Face writes its JSON files."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8", newline="\n")
