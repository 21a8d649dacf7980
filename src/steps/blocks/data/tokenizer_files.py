"""A tokenizer's files on their way to Hugging Face tools and back, as they are.

``tokenizer.json``, ``tokenizer_config.json`` and the chat template have the same form on both
sides. What Hugging Face wants besides is derived from them: ``special_tokens_map.json``, and the
ids in ``generation_config.json`` that end an answer.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from nemotron_style.runtime.errors import InputError, Problem
from nemotron_style.steps.blocks.data.chat_format import ChatPromptTokens
from nemotron_style.steps.blocks.data.tokenizer import (
    TEMPLATE_FILE,
    Tokenizer,
    describe,
    open_chat,
    write_settings,
)
from nemotron_style.steps.blocks.settings.model_config import ModelConfig

SPECIAL_FILE, GENERATION_FILE = "special_tokens_map.json", "generation_config.json"
FILES = ("tokenizer.json", "tokenizer_config.json", SPECIAL_FILE, TEMPLATE_FILE)

_ROLES = ("bos_token", "eos_token", "pad_token")
_CANARY = "Name a river.\n\tThe Rhine. 1234 é ☂ 日本"


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the files of a tokenizer from folder to folder, those that are there."""
    target.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def export_tokenizer(source: Path, target: Path) -> dict[str, int | None]:
    """Write a tokenizer as Hugging Face reads it; its token ids, as ``config.json`` has them."""
    tokenizer = Tokenizer(source)
    copy_tokenizer(source, target)
    special = special_tokens(tokenizer)
    if not (target / SPECIAL_FILE).is_file():
        _write_json(target / SPECIAL_FILE, special)
    ids = token_ids(tokenizer)
    known = {name: number for name, number in ids.items() if number is not None}
    _write_json(target / GENERATION_FILE, known)
    return ids


def import_tokenizer(source: Path, target: Path, *, tokens: ChatPromptTokens | None) -> Tokenizer:
    """Bring a tokenizer into a folder of its own, with ``tokens`` for chatting where given.

    Raises:
        InputError: there is no ``tokenizer.json``, it already chats with other tokens, or one of
            ``tokens`` is not a single id of it.
    """
    if not (source / "tokenizer.json").is_file():
        fix = "save it with transformers' fast tokenizer, which writes the file"
        what = "there is no tokenizer.json"
        raise InputError(Problem(where=str(source), key="tokenizer.json", what=what, fix=fix))
    if tokens:
        open_chat(Tokenizer(source), tokens)
    copy_tokenizer(source, target)
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


def describe_words(tokenizer: Tokenizer) -> dict[str, Any]:
    """The facts of a record: those of :func:`tokenizer.describe` where the chat format is known.

    Else the digest of the template that was carried, and a fixed text as ids. The template is not
    rendered: it is a program that came from elsewhere.
    """
    if "chat_prompt_tokens" in tokenizer.settings:
        return describe(tokenizer, open_chat(tokenizer))
    template = _template(tokenizer)
    digest = hashlib.sha256(template.encode()).hexdigest() if template else None
    return {
        "tokenizer_digest": tokenizer.digest,
        "template_digest": f"sha256:{digest}" if digest else None,
        "canary": {"text": _CANARY, "ids": tokenizer.encode(_CANARY)},
    }


def _template(tokenizer: Tokenizer) -> str | None:
    """The text of the chat template, from its own file or from the settings."""
    file = tokenizer.path / TEMPLATE_FILE
    if file.is_file():
        return file.read_text(encoding="utf-8")
    stored = tokenizer.settings.get("chat_template")
    return stored if stored is None or isinstance(stored, str) else json.dumps(stored)


def special_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    """The tokens that ``tokenizer_config.json`` gives a role, as text, by role."""
    roles = {name: value for name, value in tokenizer.settings.items() if name.endswith("_token")}
    texts = {
        name: value["content"] if isinstance(value, dict) else value
        for name, value in roles.items()
    }
    return {name: text for name, text in sorted(texts.items()) if isinstance(text, str)}


def token_ids(tokenizer: Tokenizer) -> dict[str, int | None]:
    """``bos_token_id``, ``eos_token_id`` and ``pad_token_id``; None for a role nobody has."""
    special = special_tokens(tokenizer)
    found = {role: tokenizer.encode(special.get(role, ""), control=True) for role in _ROLES}
    return {f"{role}_id": ids[0] if len(ids) == 1 else None for role, ids in found.items()}


def _write_json(file: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8", newline="\n")
