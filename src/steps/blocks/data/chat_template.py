"""A checkpoint's own chat template: messages in any role that it knows, as the tokens of a prompt.

This is how transformers and vLLM ask the same checkpoint. A template is a program, so it runs in
Jinja's sandbox, where it can reach nothing but what it is given, in a process with limits
(:mod:`template_process`). It is not told the date, so that the same messages are always the same
prompt.

What a message says never becomes a control token: where it holds one, the message is encoded as
ordinary text, apart from what the template writes around it.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any, NoReturn

from nemotron_style.runtime.errors import InputError, Problem
from nemotron_style.steps.blocks.data.jsonl import brief
from nemotron_style.steps.blocks.data.template_process import TemplateFault, TemplateRenderer
from nemotron_style.steps.blocks.data.tokenizer import TEMPLATE_FILE, Tokenizer

Message = Mapping[str, str]

SPOKEN = ("<think>", "</think>", "[THINK]", "[/THINK]", "<tool_call>", "</tool_call>")
"""What an assistant writes inside an answer and some tokenizers have as a token: no turn."""

_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")


@dataclass(frozen=True)
class Rendering:
    """The text of messages, and its tokens with the places in the text that each stands for.

    ``marks`` are those of the blocks ``{% generation %}``, where the template has any.
    """

    text: str
    ids: list[int]
    spans: list[tuple[int, int]]
    marks: list[tuple[int, int]]

    def count_before(self, place: int) -> int:
        """How many tokens begin before ``place``."""
        return bisect_left(self.spans, place, key=lambda span: span[0])

    def is_cut_at(self, place: int) -> bool:
        """Whether a token stands on both sides of ``place``."""
        number = self.count_before(place)
        return number > 0 and self.spans[number - 1][1] > place


@dataclass(frozen=True)
class ChatTemplate:
    """A tokenizer with the template that belongs to it."""

    tokenizer: Tokenizer
    source: str

    @cached_property
    def renderer(self) -> TemplateRenderer:
        """What runs it."""
        words = dict.fromkeys(_ROLES, "") | self.tokenizer.special_tokens
        return TemplateRenderer(self.source, words)

    def check(self) -> None:
        """Raise InputError for what is no template."""
        try:
            self.renderer.check()
        except TemplateFault as fault:
            what = "is no chat template"
            where = str(self.tokenizer.path)
            raise InputError(Problem(where=where, what=what, got=str(fault))) from None

    @cached_property
    def controls(self) -> frozenset[int]:
        """Ids of the control tokens."""
        return frozenset(self.tokenizer.control_ids.values())

    @cached_property
    def spoken(self) -> dict[str, int]:
        """Control tokens that an assistant writes inside an answer, and their ids."""
        known = self.tokenizer.control_ids
        return {tag: known[tag] for tag in SPOKEN if tag in known}

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """The tokens of the prompt that the assistant's answer to ``messages`` continues.

        Raises InputError as :meth:`tokenize` does.
        """
        return self.tokenize(messages).ids

    def tokenize(
        self, messages: Sequence[Message], *, prompt: bool = True, seams: Collection[int] = ()
    ) -> Rendering:
        """What the template writes for ``messages``, with ``prompt`` up to where an answer begins.

        No token spans a place of ``seams``. Raises InputError for messages that the template
        refuses or leaves out, and for one that holds a control token and is not written as it
        stands.
        """
        roles = tuple((message["role"], not message["content"]) for message in messages)
        bare, wanted = self._words(roles, prompt)
        text, marks = self._render_marked(messages, prompt=prompt)
        rendering = self._encode_parts([(text, True)], marks)
        said = {tag for tag in self.spoken if any(tag in each for each in _unspoken(messages))}
        free = frozenset() if said else frozenset(self.spoken.values())
        parts = [(text, True)]
        if self._controls_of(rendering.ids, free) != self._controls_of(wanted, free):
            parts = self._parts(messages, bare=bare, text=text)
            rendering = self._encode_parts(parts, marks)
        if any(rendering.is_cut_at(place) for place in seams):
            rendering = self._encode_parts(_split_at(parts, seams), marks)
        return rendering

    @cached_property
    def _words(self) -> Callable[[tuple[tuple[str, bool], ...], bool], tuple[str, list[int]]]:
        """The text with a harmless word in the place of each message, and its tokens.

        It is asked for by roles, and whether a message is empty: such a one stays, since templates
        ask whether there is a text, and none says nothing. Raises InputError for another that the
        template leaves out.
        """

        @lru_cache(maxsize=1024)  # most rows of a file have the same roles
        def render(roles: tuple[tuple[str, bool], ...], prompt: bool) -> tuple[str, list[int]]:
            words = _choose_words(roles)
            messages = [
                {"role": role, "content": words.get(number, "")}
                for number, (role, _) in enumerate(roles)
            ]
            bare = self.render(messages, prompt=prompt)
            for number, word in words.items():
                if word not in bare:
                    role = f"role {roles[number][0]}"
                    _refuse(f"messages[{number}]", "the chat template leaves it out", role)
            return bare, self.tokenizer.encode(bare, control=True)

        return render

    def _parts(
        self, messages: Sequence[Message], *, bare: str, text: str
    ) -> list[tuple[str, bool]]:
        """What the template writes, and each message; whether control tokens in it are read.

        For messages that hold control tokens. Raises InputError where the template writes one of
        them in other words, so that it cannot be told apart.
        """
        words = _choose_words([(message["role"], not message["content"]) for message in messages])
        contents = {word: messages[number] for number, word in words.items()}
        pieces = re.split(f"({'|'.join(contents)})", bare)
        written = [contents[one]["content"] if one in contents else one for one in pieces]
        if "".join(written) != text:
            self._blame(messages)
        parts: list[tuple[str, bool]] = []
        for piece in pieces:
            if piece not in contents:
                parts.append((piece, True))
            elif contents[piece]["role"] == "assistant":
                parts += self.split_spoken(contents[piece]["content"])
            else:
                parts.append((contents[piece]["content"], False))
        return parts

    def split_spoken(self, text: str) -> list[tuple[str, bool]]:
        """An answer in parts: the tags that it may hold are read as tokens, the rest is text."""
        if not self.spoken:
            return [(text, False)]
        pieces = re.split(f"({'|'.join(map(re.escape, self.spoken))})", text)
        return [(piece, piece in self.spoken) for piece in pieces if piece]

    def _encode_parts(
        self, parts: Sequence[tuple[str, bool]], marks: list[tuple[int, int]]
    ) -> Rendering:
        """The rendering of parts that are tokenised apart."""
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        base = 0
        for text, control in parts:
            own, places = self.tokenizer.encode_spans(text, control=control)
            ids += own
            spans += [(start + base, end + base) for start, end in places]
            base += len(text)
        return Rendering("".join(text for text, _ in parts), ids, spans, marks)

    def render(self, messages: Sequence[Message], *, prompt: bool = True) -> str:
        """The text of messages. Raises InputError for those that the template refuses."""
        return self._render_marked(messages, prompt=prompt)[0]

    def _render_marked(
        self, messages: Sequence[Message], *, prompt: bool
    ) -> tuple[str, list[tuple[int, int]]]:
        try:
            return self.renderer.render_marked(messages, prompt=prompt)
        except TemplateFault as fault:
            roles = [message["role"] for message in messages]
            what = f"the chat template cannot render these messages: {fault}"
            fix = "say in the first user message what the system message says"
            raise InputError(
                Problem(
                    key="messages",
                    what=what,
                    got=f"roles {', '.join(roles)}",
                    fix=fix if "system" in roles else "",
                )
            ) from None

    def _controls_of(self, ids: Sequence[int], free: Collection[int] = ()) -> list[int]:
        return [number for number in ids if number in self.controls and number not in free]

    def _blame(self, messages: Sequence[Message]) -> NoReturn:
        """Refuse messages whose text would steer the prompt, naming the first that would."""
        for number, message in enumerate(messages):
            for token in self.tokenizer.control_ids:
                if token in message["content"]:
                    what = "a control token stands inside a message"
                    _refuse(f"messages[{number}].content", what, brief(token))
        _refuse("messages", "together they would make a control token of the prompt", "")


def _choose_words(roles: Sequence[tuple[str, bool]]) -> dict[int, str]:
    """A word for each message that is not empty."""
    width = len(str(len(roles)))  # of one length, so that none is a part of another
    return {n: f"message{n:0{width}d}" for n, (_, empty) in enumerate(roles) if not empty}


def _unspoken(messages: Sequence[Message]) -> list[str]:
    """What is said by anyone but the assistant."""
    return [message["content"] for message in messages if message["role"] != "assistant"]


def _split_at(parts: Sequence[tuple[str, bool]], seams: Collection[int]) -> list[tuple[str, bool]]:
    """The same text in parts that end at each of ``seams``."""
    split, base = [], 0
    for text, control in parts:
        inside = sorted(place - base for place in seams if base < place < base + len(text))
        places = [0, *inside, len(text)]
        split += [(text[start:end], control) for start, end in pairwise(places)]
        base += len(text)
    return split


def read_template(tokenizer: Tokenizer) -> ChatTemplate:
    """The template beside ``tokenizer.json``, from its own file or from the settings.

    Raises InputError where there is none.
    """
    source: Any = tokenizer.template
    if isinstance(source, list):  # several, by name
        named = [each for each in source if isinstance(each, dict)]
        source = next((one.get("template") for one in named if one.get("name") == "default"), None)
    if isinstance(source, str):
        return ChatTemplate(tokenizer, source)
    what = "the model has no chat template, so it cannot be asked in messages"
    fix = f"write {TEMPLATE_FILE} beside tokenizer.json"
    raise InputError(Problem(where=str(tokenizer.path), what=what, fix=fix))


def _refuse(key: str, what: str, got: str) -> NoReturn:
    raise InputError(Problem(key=key, what=what, got=got))
