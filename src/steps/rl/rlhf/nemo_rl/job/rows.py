"""Prompts in the form that NeMo-Gym takes: ``responses_create_params`` and ``agent_ref``.

Without NeMo-Gym, NeMo-RL reads ``input`` and ``output``.

What is written is named by its content, so the same rows always lie at the same path: NeMo-RL
names a data set by its path, and forgets its place in the data when the name changes.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_style.runtime.step.state_file import write_whole
from nemotron_style.steps.blocks.data.jsonl import brief, find_jsonl, read_rows, refuse
from nemotron_style.steps.rl.rlhf.nemo_rl.version import Version
from nemotron_style.steps.rl.rlhf.prompt import read_messages

PARAMS = "responses_create_params"
AGENT = "genrm_simple_agent"
SHOWN = 10

Row = dict[str, Any]


@dataclass(frozen=True)
class PreparedRows:
    """The file that NeMo-RL reads, the digest of its bytes, its rows, and what to tell of it."""

    path: Path
    digest: str
    rows: int
    notes: tuple[str, ...] = ()


def prepare_rows(
    source: Path,
    folder: Path,
    *,
    slot: str,
    version: Version,
    agent: str | Mapping[str, Any],
    most_tokens: int | None = None,
) -> PreparedRows:
    """Rows for NeMo-Gym: ``source`` itself where nothing is to be changed, else a new file.

    ``most_tokens`` of a response stand in the rows at v0.6.0, which reads the limit there alone.
    Raises InputError with every bad row.
    """
    file = find_jsonl(source)
    pairs = read_rows(file, lambda row: (row, normalise_row(row, agent)))
    rows, normal = [row for row, _ in pairs], [row for _, row in pairs]
    keys = [prompt_key(row) for row in normal]
    notes = list(name_duplicates(keys, slot, version))
    if version >= Version.V0_7_0:  # the first whose NeMo-Gym knows prompt ids
        normal = add_prompt_ids(normal, keys)
    elif most_tokens is not None:
        normal = [
            row | {PARAMS: {"max_output_tokens": most_tokens, **row[PARAMS]}} for row in normal
        ]
    data = file.read_bytes()
    if normal != rows or len(data.splitlines()) != len(rows):  # a blank line is no row to NeMo-RL
        return _write_rows(normal, folder, slot, tuple(notes))
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    return PreparedRows(file, digest, len(normal), tuple(notes))


def prepare_texts(source: Path, folder: Path, *, slot: str) -> PreparedRows:
    """Rows ``{"input": text, "output": ""}`` for NeMo-RL's own data, without NeMo-Gym.

    Raises InputError with every bad row.
    """
    return _write_rows(read_rows(find_jsonl(source), read_text), folder, slot)


def _write_rows(
    rows: Sequence[Row], folder: Path, slot: str, notes: tuple[str, ...] = ()
) -> PreparedRows:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    digest = hashlib.sha256(text.encode()).hexdigest()
    file = folder / f"{slot}-{digest[:16]}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(file, text)
    return PreparedRows(file, f"sha256:{digest}", len(rows), notes)


def read_text(row: Row) -> Row:
    """The row as its one question; InputError for a conversation.

    NeMo-RL's processor takes the first message alone, and the answer, which it wants to be there,
    goes to environments that compare with it; a reward model does not.
    """
    messages = read_messages(row)
    if [message["role"] for message in messages] != ["user"]:
        got = ", ".join(str(message["role"]) for message in messages)
        what = "without NeMo-Gym, NeMo-RL asks the policy one text and no conversation"
        refuse(what, key="messages", got=got, allowed="one message of the user")
    if not isinstance(messages[0]["content"], str) or not messages[0]["content"]:
        refuse("is no text", key="messages[0].content", got=brief(messages[0]["content"]))
    return {"input": messages[0]["content"], "output": ""}


def normalise_row(row: Row, agent: str | Mapping[str, Any]) -> Row:
    """The row with ``responses_create_params`` and ``agent_ref``; what else it holds stays.

    Raises InputError for one without a prompt, or whose prompt does not end with the user.
    """
    extra = row.get("extra_env_info")
    params = row.get(PARAMS)
    if params is None and isinstance(extra, Mapping):
        params = extra.get(PARAMS)
    if params is None:
        params = {"input": read_messages(row)} | ({"tools": row["tools"]} if "tools" in row else {})
    if not isinstance(params, Mapping):
        refuse("is an object", key=PARAMS, got=brief(params))
    items = _plain_items(params.get("input"))
    if (last := items[-1]).get("role") != "user":
        key, got = f"{PARAMS}.input", str(last.get("role") or last.get("type"))
        refuse("the last message is not the user's", key=key, got=got, allowed="user")
    reference = row.get("agent_ref") or agent
    if isinstance(reference, str):
        reference = {"type": "responses_api_agents", "name": reference}
    return {**row, PARAMS: {**params, "input": items}, "agent_ref": reference}


def prompt_key(row: Row) -> str:
    """The hash by which NeMo-Gym tells prompts apart: of the messages and the principle."""
    text = json.dumps(
        {"input": row[PARAMS]["input"], "principle": row.get("principle")}, sort_keys=True
    )
    return hashlib.sha256(text.encode()).hexdigest()


def add_prompt_ids(rows: Sequence[Row], keys: Sequence[str]) -> list[Row]:
    """Rows with a ``prompt_id`` each, so that equal prompts of a step stay groups of their own."""
    seen: Counter[str] = Counter()
    named = []
    for row, key in zip(rows, keys, strict=True):
        seen[key] += 1
        again = f"-{seen[key]}" if seen[key] > 1 else ""
        is_named = row.get("prompt_id") is not None
        named.append(row if is_named else row | {"prompt_id": f"{key[:16]}{again}"})
    return named


def name_duplicates(keys: Sequence[str], slot: str, version: Version) -> Iterator[str]:
    """A line for each prompt that several rows hold, at most ten of them."""
    places: dict[str, list[int]] = {}
    for number, key in enumerate(keys, start=1):
        places.setdefault(key, []).append(number)
    repeated = [numbers for numbers in places.values() if len(numbers) > 1]
    effect = "each gets a prompt_id of its own"
    if version < Version.V0_7_0:
        effect = f"in one step {version} mixes their answers into one group"
    for numbers in repeated[:SHOWN]:
        shown = ", ".join(map(str, numbers[:SHOWN])) + (" ..." if len(numbers) > SHOWN else "")
        yield f"{slot}: rows {shown} have the same prompt; {effect}"
    if len(repeated) > SHOWN:
        yield f"{slot}: {len(repeated)} prompts stand in several rows, {SHOWN} shown"


def _plain_items(given: Any) -> list[Row]:
    """An ``input`` as a list whose messages have one text each.

    NeMo-Gym before 0.7.0 reads a text as one message a character, and of a list of parts only
    those of the assistant.
    """
    key = f"{PARAMS}.input"
    if isinstance(given, str) and given:
        return [{"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        refuse("is a text or a list of messages", key=key, got=brief(given))
    if not all(isinstance(item, Mapping) for item in given):
        refuse("an item of input is an object", key=key, got=brief(given))
    return [_plain_item(item, f"{key}[{index}]") for index, item in enumerate(given)]


def _plain_item(item: Mapping[str, Any], key: str) -> Row:
    content = item.get("content")
    if item.get("type", "message") != "message" or isinstance(content, str):
        return dict(item)
    if content is None:
        return {**item, "content": ""}
    is_text = isinstance(content, list) and all(
        isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in content
    )
    if not is_text:
        refuse("is a text or a list of texts", key=f"{key}.content", got=brief(content))
    return {**item, "content": "".join(part["text"] for part in content)}
