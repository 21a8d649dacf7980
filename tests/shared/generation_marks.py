"""transformers' own loss mask for any chat template: the template with ``{% generation %}`` in it.

Few templates have the marks that ``return_assistant_tokens_mask`` asks for. These are put in here
by rule, so that no template's text has to be kept: around what is written of an assistant's
message from its content on, and around what ends its turn. TRL's training templates are marked so.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

CONTENT = (
    r"(?:\bmessage\[['\"]content['\"]\]|message\.content|\bcontent)"
    r"(?:\s*\|\s*trim|\.l?strip\((?:'\\n')?\))?"
)
WRITES_CONTENT = re.compile(
    rf"\{{\{{-?\s*(?P<head>(?:(?!\}}\}}|\bcontent\b).)*?\+\s*)??(?P<text>{CONTENT})\s*"
    rf"(?P<tail>\+(?:(?!\}}\}}).)*?)?(?P<minus>-?)\}}\}}(?P<line>\n(?!\s*\{{[{{%]-))?",
    re.S,
)
ENDS_TURN = re.compile(
    r"\{\{-?\s*(?P<text>'(?:<\|im_end\|>|<end_of_turn>)(?:\\n|\n)?')\s*(?P<minus>-?)\}\}"
)
ENDS_ALL = re.compile(r"(?<=\{% else %\})\{\{ (?P<text>eos_token) \}\}")
"""Phi writes it behind a conversation that is whole."""
THINKS = re.compile(r"'\\n<think>")


class Marked(NamedTuple):
    ids: list[int]
    mask: list[int]


def mark(source: str, answer_begins: str = "") -> str:
    """``source`` with marks; ``answer_begins`` is what it writes of an answer before its content
    and not behind the prompt of one (Llama 2's space)."""

    def wrap(text: str, minus: str, message: str = "message") -> str:
        marked = f"{{% generation %}}{{{{ {text} }}}}{{% endgeneration %}}"
        return (
            f"{{% if {message}['role'] == 'assistant' %}}{marked}"
            f"{{% else %}}{{{{ {text} }}}}{{% endif %}}{{{{ '' {minus}}}}}"
        )

    def split(found: re.Match[str]) -> str:
        head = (found["head"] or "").rstrip("+ \n")
        text = f"{found['text']} {found['tail'] or ''}"
        if found["line"]:  # Jinja writes the line break behind an expression
            text += r" + '\n'"
        start = THINKS.search(head)
        if start:  # Qwen 3's prompt ends before the reasoning, so that is of the answer
            text = f"'<think>{head[start.end() :]} + {text}"
            head = f"{head[: start.start()]}'\\n'"
        elif answer_begins and head == repr(answer_begins):
            head, text = "", f"{head} + {text}"
        opening = "{{-" if found[0].startswith("{{-") else "{{"
        return f"{opening} {head or repr('')} }}}}{wrap(text, found['minus'])}"

    source = WRITES_CONTENT.sub(split, source)
    source = ENDS_ALL.sub(lambda found: wrap(found["text"], "", "messages[-1]"), source)
    return ENDS_TURN.sub(
        lambda found: f"{found[0][:3].rstrip()} '' }}}}{wrap(found['text'], found['minus'])}",
        source,
    )


def render_marked(tokenizer: Any, messages: Sequence[Any], source: str) -> Marked:
    """The ids and the mask of transformers' tokenizer."""
    found = tokenizer.apply_chat_template(
        messages, chat_template=source, return_dict=True, return_assistant_tokens_mask=True
    )
    return Marked(found["input_ids"], found["assistant_masks"])
