"""The messages of a row of prompts.

A row says what is asked in one of the forms of NeMo-RL's data: ``responses_create_params`` (an
``input`` of the Responses API, with ``instructions`` or without), or ``messages`` or ``prompt``
(a text, or turns under the names that data sets use), or a bare ``question``, ``problem`` or
``input``.  What else stands in a row is where it came from, and is left alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nemotron_style.steps.blocks.data.jsonl import brief, refuse
from nemotron_style.steps.blocks.data.responses_api import read_history

TURNS = ("messages", "prompt")
TEXTS = ("question", "problem", "input")
SPEAKERS = {"human": "user", "gpt": "assistant", "model": "assistant"}


def read_messages(row: Mapping[str, Any]) -> list[dict[str, str]]:
    """The messages ``{"role", "content"}`` of a row.

    Raises InputError for a row without a prompt, and for one that offers tools.
    """
    extra = row.get("extra_env_info")
    params = row.get("responses_create_params")
    if params is None and isinstance(extra, Mapping):
        params = extra.get("responses_create_params")
    if params is not None:
        return _read_params(params)
    for name in TURNS:
        if row.get(name):
            return _read_turns(row[name], name)
    for name in TEXTS:
        if isinstance(row.get(name), str) and row[name]:
            return [{"role": "user", "content": row[name]}]
    refuse(
        "the row holds no prompt",
        key="responses_create_params",
        got=", ".join(row) or "an empty object",
        allowed=", ".join(("responses_create_params", *TURNS, *TEXTS)),
    )


def _read_params(params: Any) -> list[dict[str, str]]:
    key = "responses_create_params"
    if not isinstance(params, Mapping) or not params.get("input"):
        refuse("there is no input", key=f"{key}.input", got=brief(params))
    if params.get("tools"):
        what = "the policy is offered no tools, so it would be judged on what it cannot do"
        refuse(what, key=f"{key}.tools", got=brief(params["tools"]), allowed="an empty list")
    given = params["input"]
    if not isinstance(given, str | list):
        refuse("input is a text or a list", key=f"{key}.input", got=brief(given))
    if isinstance(given, list) and not all(isinstance(item, Mapping) for item in given):
        refuse("an item of input is an object", key=f"{key}.input", got=brief(given))
    messages = read_history(given)
    if params.get("instructions"):
        messages.insert(0, {"role": "system", "content": str(params["instructions"])})
    return messages


def _read_turns(turns: Any, key: str) -> list[dict[str, str]]:
    if isinstance(turns, str):
        return [{"role": "user", "content": turns}]
    if not isinstance(turns, Sequence):
        refuse("is a text or a list of turns", key=key, got=brief(turns))
    return [_read_turn(turn, f"{key}[{place}]") for place, turn in enumerate(turns)]


def _read_turn(turn: Any, key: str) -> dict[str, str]:
    if isinstance(turn, str):
        return {"role": "user", "content": turn}
    if not isinstance(turn, Mapping):
        refuse("a turn is a text or an object", key=key, got=brief(turn))
    role = turn.get("role", turn.get("from"))
    content = next((turn[name] for name in ("content", "value", "text") if name in turn), None)
    return {"role": SPEAKERS.get(role, role), "content": content}
