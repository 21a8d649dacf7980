"""Text to tokens: a directory with ``tokenizer.json`` and what stands beside it.

The directory is what Hugging Face tools read (``tokenizer.json``, ``tokenizer_config.json``,
``chat_template.jinja``). Its config also holds the ``chat_prompt_tokens`` that the tokenizer was
made for, so a checkpoint says which chat format it wants and no later step can guess differently.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from nemotron_style.runtime.errors import InputError, Problem, raise_all
from nemotron_style.runtime.text_file import read_json_file, read_text_file
from nemotron_style.steps.blocks.data.chat_format import ChatFormat, ChatPromptTokens

MOST_BYTES = 512 << 20
"""Of ``tokenizer.json``; those of large vocabularies have some 30 MB."""
TEMPLATE_FILE, SPECIAL_FILE = "chat_template.jinja", "special_tokens_map.json"
GENERATION_FILE = "generation_config.json"
_CANARY = "Name a river.\n\tThe Rhine. 1234 é ☂ 日本"


class Tokenizer:
    """A tokenizer read from a directory that holds ``tokenizer.json``.

    Raises:
        InputError: the directory holds no tokenizer, or one that cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        file = self.path / "tokenizer.json"
        if not file.is_file():
            raise InputError(Problem(where=str(self.path), what="there is no tokenizer.json"))
        self._json = read_text_file(file, InputError, most=MOST_BYTES)
        try:
            # Two copies: whether control tokens in a text are recognised is a setting of the
            # backend and not of a call.
            text = _without_habits(self._json)
            self._with_control, self._plain = self._open_backend(text), self._open_backend(text)
        except InputError:
            raise
        except Exception as error:  # the library raises bare Exception
            raise InputError(
                Problem(where=str(file), what="not a tokenizer", got=str(error))
            ) from error
        self._plain.encode_special_tokens = True

    def _open_backend(self, text: str) -> Backend:
        backend = Backend.from_str(text)
        # A role makes a token of the vocabulary a control token, as transformers has it. One that
        # was added before keeps its ways: some take the white space beside them along.
        added = {token.content for token in backend.get_added_tokens_decoder().values()}
        named = {*self.special_tokens.values(), *self.further_special_tokens} - added
        known = [text for text in sorted(named) if backend.token_to_id(text) is not None]
        backend.add_special_tokens([AddedToken(text, normalized=False) for text in known])
        return backend

    def encode(self, text: str, *, control: bool = False) -> list[int]:
        """Token ids of ``text``; nothing is added around it.

        With ``control`` a control token in the text becomes its own id: for texts that
        :class:`ChatFormat` has built. Without, it is read as ordinary characters.
        """
        backend = self._with_control if control else self._plain
        return list(backend.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids``, control tokens included: the inverse of :meth:`encode`."""
        return str(self._with_control.decode(list(ids), skip_special_tokens=False))

    def decode_token(self, number: int) -> str:
        """The text that a token adds to another before it.

        At the beginning of a text many decoders drop the space that a token begins with.
        """
        before = self._plain.encode("a", add_special_tokens=False).ids[:1]
        return self.decode([*before, number]).removeprefix(self.decode(before))

    @cached_property
    def vocab_size(self) -> int:
        """The smallest embedding that has a row for every id, added tokens included."""
        return max(self._known_ids) + 1

    def knows(self, ids: Iterable[int]) -> bool:
        """Whether each of ``ids`` is that of a token.

        Rows that pad an embedding, and gaps between ids, belong to no token: a model can sample
        them all the same, and :meth:`decode` leaves them out.
        """
        return self._known_ids.issuperset(ids)

    @cached_property
    def _known_ids(self) -> frozenset[int]:
        return frozenset(self._with_control.get_vocab(with_added_tokens=True).values())

    @cached_property
    def control_ids(self) -> dict[str, int]:
        """Control tokens (every added token but white space, and those with a role), and ids."""
        added = self._with_control.get_added_tokens_decoder()
        return {token.content: number for number, token in added.items() if token.special}

    @cached_property
    def digest(self) -> str:
        """``sha256:…`` of ``tokenizer.json``, whatever the order of its keys."""
        content = json.dumps(json.loads(self._json), sort_keys=True, ensure_ascii=False)
        return "sha256:" + hashlib.sha256(content.encode()).hexdigest()

    @cached_property
    def settings(self) -> dict[str, Any]:
        """``tokenizer_config.json``, or nothing when there is none."""
        file = self.path / "tokenizer_config.json"
        return read_json_file(file, InputError, most=MOST_BYTES) if file.is_file() else {}

    @cached_property
    def generation(self) -> dict[str, Any]:
        """``generation_config.json``, or nothing when there is none."""
        file = self.path / GENERATION_FILE
        return read_json_file(file, InputError) if file.is_file() else {}

    @cached_property
    def special_tokens(self) -> dict[str, str]:
        """The text of each token that has a role (``bos_token``, ``eos_token`` ...), by role.

        ``tokenizer_config.json`` goes before ``special_tokens_map.json``.
        """
        texts = {name: _text_of(value) for name, value in self._named_tokens.items()}
        roles = sorted(name for name in texts if name.endswith("_token"))
        return {name: text for name in roles if (text := texts[name]) is not None}

    @cached_property
    def further_special_tokens(self) -> list[str]:
        """The texts of special tokens that the settings list without a role."""
        listed: list[Any] = []
        for name in ("additional_special_tokens", "extra_special_tokens"):
            tokens = self._named_tokens.get(name) or []
            listed += tokens.values() if isinstance(tokens, dict) else tokens
        return [text for token in listed if (text := _text_of(token)) is not None]

    @cached_property
    def _named_tokens(self) -> dict[str, Any]:
        file = self.path / SPECIAL_FILE
        return (read_json_file(file, InputError) if file.is_file() else {}) | self.settings

    @cached_property
    def template(self) -> Any:
        """The chat template from its own file, else as it stands in the settings (or None)."""
        file = self.path / TEMPLATE_FILE
        if file.is_file():
            return read_text_file(file, InputError)
        return self.settings.get("chat_template")


def open_chat(tokenizer: Tokenizer, tokens: ChatPromptTokens | None = None) -> ChatFormat:
    """The chat format of a tokenizer, with ``tokens`` from a config or None for its own.

    Raises:
        InputError: ``tokens`` differ from those stored with the tokenizer, or one of them is not
            a single id of it.
    """
    stored = _stored_tokens(tokenizer)
    chosen = tokens or stored or ChatPromptTokens()
    if stored and chosen != stored:
        raise InputError(
            Problem(
                where=str(tokenizer.path),
                key="model.data.chat_prompt_tokens",
                what="the model was trained with other tokens",
                got=json.dumps(chosen.model_dump()),
                allowed=json.dumps(stored.model_dump()),
                fix="remove the key from the config: the checkpoint knows its own",
            )
        )
    problems = [
        Problem(
            where=str(tokenizer.path),
            key="model.data.chat_prompt_tokens",
            what="a control token must be one id of the tokenizer",
            got=json.dumps(token),
            allowed=", ".join(map(json.dumps, tokenizer.control_ids)),
            fix="choose tokens that the tokenizer marks as special, or add this one to it",
        )
        for token in chosen.atomic
        if len(tokenizer.encode(token, control=True)) != 1
    ]
    raise_all(InputError, problems)
    others = [token for token in tokenizer.control_ids if token not in chosen.atomic]
    return ChatFormat(chosen, tuple(token for token in others if token.strip()))


def stop_id(tokenizer: Tokenizer, chat: ChatFormat) -> int:
    """The id that ends a response: the start of the next turn."""
    [number] = tokenizer.encode(chat.tokens.turn_start, control=True)
    return number


def tokenizer_facts(tokenizer: Tokenizer, chat: ChatFormat | None = None) -> dict[str, Any]:
    """The facts for a checkpoint's record that show a change of tokenizer or chat format.

    ``chat`` is the format that the checkpoint is used with; None stands for the one stored with
    the tokenizer. Where none is stored either, they are the digest of the tokenizer's own chat
    template and the ids of a fixed text. That template is not rendered: it is a program that came
    from elsewhere.
    """
    if chat is None and "chat_prompt_tokens" in tokenizer.settings:
        chat = open_chat(tokenizer)
    text = chat.canary() if chat else _CANARY
    return {
        "tokenizer_digest": tokenizer.digest,
        "template_digest": chat.digest() if chat else _template_digest(tokenizer),
        "canary": {"text": text, "ids": tokenizer.encode(text, control=chat is not None)},
    }


def _template_digest(tokenizer: Tokenizer) -> str | None:
    template = tokenizer.template
    source = template if isinstance(template, str) else json.dumps(template)
    return f"sha256:{hashlib.sha256(source.encode()).hexdigest()}" if template else None


def _without_habits(text: str) -> str:
    """A ``tokenizer.json`` in which every added token is special, and nothing is cut or padded.

    Many files mark added tokens as not special, those that begin a turn among them; then anybody's
    text could begin one. They are looked for in the text as it stands: a normaliser that makes one
    of ``<|USER|>`` would make it of a message. Added tokens of white space alone stay text: they
    mark nothing. And whoever saved the file may have padded or cut texts, or had words taken apart
    at random (``dropout``), which the library keeps in it.
    """
    content = json.loads(text)
    tokens = [one for one in content.get("added_tokens") or () if one["content"].strip()]
    changed = [one for one in tokens if not one["special"] or one.get("normalized", True)]
    model = content.get("model") or {}
    saved = (content.get("padding"), content.get("truncation"), model.get("dropout"))
    if not changed and not any(saved):
        return text  # as most are: a large file is not written anew for nothing
    for token in changed:
        token |= {"special": True, "normalized": False}
    if model.get("dropout"):
        model["dropout"] = None
    return json.dumps(content | {"padding": None, "truncation": None})


def _text_of(token: Any) -> str | None:
    """The text of a token as a settings file writes it: a string, or a table with ``content``."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) and text else None


def _stored_tokens(tokenizer: Tokenizer) -> ChatPromptTokens | None:
    stored = tokenizer.settings.get("chat_prompt_tokens")
    try:
        return None if stored is None else ChatPromptTokens.model_validate(stored)
    except ValidationError as error:
        raise InputError(
            Problem(
                where=str(tokenizer.path / "tokenizer_config.json"),
                key="chat_prompt_tokens",
                what="these are not chat prompt tokens",
                got=str(error.errors()[0]["msg"]),
            )
        ) from error
