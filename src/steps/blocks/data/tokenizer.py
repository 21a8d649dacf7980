"""Text to tokens: a directory with ``tokenizer.json`` and what stands beside it.

The directory is what Hugging Face tools read (``tokenizer.json``, ``tokenizer_config.json``,
``chat_template.jinja``). Its config also holds the ``chat_prompt_tokens`` that the tokenizer was
made for, so a checkpoint says which chat format it wants and no later step can guess differently.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from nemotron_style.runtime.errors import InputError, Problem
from nemotron_style.runtime.text_file import read_json_file, read_text_file

_SPACE = "\u2581"  # how SentencePiece writes a space
_HTML = re.compile(
    r"</?(?:table|caption|thead|tbody|tfoot|tr|th|td|h[1-6]|blockquote|strong|em|b|i|u|s|sub|sup|"
    r"code|pre|a|p|br|hr|img|div|span|ul|ol|li|html|body|footer|iframe)>"
)
MOST_BYTES = 512 << 20
"""Of ``tokenizer.json``; those of large vocabularies have some 30 MB."""
TEMPLATE_FILE, SPECIAL_FILE = "chat_template.jinja", "special_tokens_map.json"
PROCESSOR_TEMPLATE_FILE = "chat_template.json"
GENERATION_FILE = "generation_config.json"


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
            text = _without_habits(self._json, marks=self._marks)
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
        # What adds tokens around a text is never asked to; some of it moves the spans of tokens.
        backend.post_processor = None
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
        a chat format has built. Without, it is read as ordinary characters.
        """
        backend = self._with_control if control else self._plain
        return list(backend.encode(text, add_special_tokens=False).ids)

    def encode_spans(
        self, text: str, *, control: bool = False
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """As :meth:`encode`, and the first and last place in the text of each token."""
        backend = self._with_control if control else self._plain
        encoded = backend.encode(text, add_special_tokens=False)
        return list(encoded.ids), list(encoded.offsets)

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
    def eos_ids(self) -> tuple[int, ...]:
        """Every id that the generation config or the role ``eos_token`` says an answer ends with.

        Raises InputError for one that is no id.
        """
        listed = self.generation.get("eos_token_id")
        ids = listed if isinstance(listed, list) else [] if listed is None else [listed]
        for number in ids:
            if type(number) is not int or number < 0:
                where, got = str(self.path / GENERATION_FILE), repr(number)[:80]
                what = "is not the id of a token"
                raise InputError(Problem(where=where, key="eos_token_id", what=what, got=got))
        named = self.encode(self.special_tokens.get("eos_token", ""), control=True)
        return tuple(dict.fromkeys([*ids, *(named if len(named) == 1 else [])]))

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

    @property
    def _marks(self) -> str:
        """What the chat template writes, and every token that has a role."""
        roles = [*self.special_tokens.values(), *self.further_special_tokens]
        return " ".join([str(self.template), *roles])

    @cached_property
    def _named_tokens(self) -> dict[str, Any]:
        file = self.path / SPECIAL_FILE
        return (read_json_file(file, InputError) if file.is_file() else {}) | self.settings

    @cached_property
    def template(self) -> Any:
        """The chat template from its own file, else as it stands in the settings (or None).

        Processors of transformers write it to ``chat_template.json``, which goes last.
        """
        file = self.path / TEMPLATE_FILE
        if file.is_file():
            return read_text_file(file, InputError)
        file = self.path / PROCESSOR_TEMPLATE_FILE
        other = read_json_file(file, InputError) if file.is_file() else {}
        return self.settings.get("chat_template") or other.get("chat_template")


def _without_habits(text: str, *, marks: str) -> str:
    """A ``tokenizer.json`` in which every added token is special, and nothing is cut or padded.

    Many files mark added tokens as not special, those that begin a turn among them; then anybody's
    text could begin one. They are looked for in the text as it stands: a normaliser that makes one
    of ``<|USER|>`` would make it of a message. Added tokens of white space alone stay text, also
    where it is written as in SentencePiece, and so do HTML's tags (Gemma has both) unless one is
    among the ``marks``, the texts that mark something here. And whoever saved the file may have
    padded or cut texts, or had words taken apart at random (``dropout``), which the library keeps
    in it.
    """
    content = json.loads(text)
    tokens = [one for one in content.get("added_tokens") or () if not _is_text(one, marks=marks)]
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


def _is_text(token: dict[str, Any], *, marks: str) -> bool:
    """Whether an added token is a piece of text, and no control token."""
    text = token["content"]
    is_tag = not token["special"] and _HTML.fullmatch(text) and text not in marks
    return bool(is_tag) or not text.replace(_SPACE, " ").strip()


def _text_of(token: Any) -> str | None:
    """The text of a token as a settings file writes it: a string, or a table with ``content``."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) and text else None
