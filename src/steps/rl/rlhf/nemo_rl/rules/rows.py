"""Facts about files of prompts: a torch-free look that refuses nothing and stops at nothing."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nemotron_style.steps.rl.rlhf.nemo_rl.rules.facts import FileRows, RowFacts, SamePrompt

SHOWN = 10
"""Line numbers, and groups of equal prompts, that are kept of each kind."""
IDS = ("prompt_id", "_ng_task_index")
PROMPT_KEYS = ("messages", "prompt", "question", "problem", "input")


def read_row_facts(
    train: Path | None, validation: Path | None = None, *, are_final: bool = False
) -> RowFacts:
    """Facts about both files; None for one that is not given or cannot be read.

    ``are_final``: NeMo-RL reads the files as they are, so their rows are in NeMo-Gym's form.
    """
    files = [read_file_rows(path) if path else None for path in (train, validation)]
    return RowFacts(files[0], files[1], are_final)


def read_file_rows(path: Path) -> FileRows | None:
    """What a JSONL file of prompts holds, in our form or in that of NeMo-Gym."""
    look = _Look()
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                look.at(number, line)
    except OSError:
        return None
    return look.facts(str(path))


def read_params(row: Mapping[str, Any]) -> Any:
    """``responses_create_params`` of a row, where NeMo-Gym or an older data set keeps it."""
    extra = row.get("extra_env_info")
    older = extra.get("responses_create_params") if isinstance(extra, Mapping) else None
    return row.get("responses_create_params", older)


def read_prompt(row: Mapping[str, Any]) -> Any:
    """The text or the messages that a row asks with; None where it asks nothing."""
    params = read_params(row)
    if isinstance(params, Mapping):
        return params.get("input")
    return next((row[key] for key in PROMPT_KEYS if row.get(key)), None)


@dataclass
class _Look:
    rows: int = 0
    lines: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    prompts: dict[bytes, list[tuple[int, str]]] = field(default_factory=lambda: defaultdict(list))
    agents: dict[str, int] = field(default_factory=dict)
    without_limit: int = 0
    longest: tuple[int, int] | None = None

    def at(self, number: int, line: bytes) -> None:
        if not line.strip():
            self._note("blank", number)
            return
        self.rows += 1
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            self._note("broken", number)
            return
        prompt = read_prompt(row)
        if not prompt:
            self._note("without_prompt", number)
            return
        self._params(number, row)
        self._agent(number, row)
        self._prompt(number, row, prompt)

    def _note(self, kind: str, number: int) -> None:
        if len(self.lines[kind]) < SHOWN:
            self.lines[kind].append(number)

    def _params(self, number: int, row: Mapping[str, Any]) -> None:
        params = row.get("responses_create_params")
        if not isinstance(params, Mapping):
            self._note("without_params", number)
            return
        self.without_limit += params.get("max_output_tokens") is None
        if not all(_is_message(item) for item in _items(params.get("input"))):
            self._note("flat_input", number)

    def _agent(self, number: int, row: Mapping[str, Any]) -> None:
        agent = row.get("agent_ref")
        name = agent.get("name") if isinstance(agent, Mapping) else None
        if isinstance(name, str):
            self.agents.setdefault(name, number)
        else:
            self._note("without_agent", number)

    def _prompt(self, number: int, row: Mapping[str, Any], prompt: Any) -> None:
        turns = [_turn(item) for item in _items(prompt)]
        asked = json.dumps([turns, row.get("principle")], sort_keys=True).encode()
        own = next((f"{key} {row[key]}" for key in IDS if row.get(key) is not None), "")
        self.prompts[hashlib.sha256(asked).digest()].append((number, own))
        length = sum(len(str(content)) for _, content in turns)
        self.longest = max(self.longest or (0, 0), (length, number))

    def facts(self, path: str) -> FileRows:
        noted = {kind: tuple(numbers) for kind, numbers in self.lines.items()}
        facts = FileRows(
            path=path,
            rows=self.rows,
            same_prompts=tuple(self._same())[:SHOWN],
            copies=_copies(len(places) for places in self.prompts.values()),
            copies_of_ids=_copies(self._copies_of_ids()),
            all_have_ids=all(own for places in self.prompts.values() for _, own in places),
            agents=self.agents,
            without_limit=self.without_limit,
            longest=self.longest,
        )
        return replace(facts, **noted)  # type: ignore[arg-type]  # each is a field of lines

    def _same(self) -> Iterator[SamePrompt]:
        for places in self.prompts.values():
            if len(places) > 1:
                names = [own for _, own in places]
                have_ids = all(names) and len(set(names)) == len(names)
                yield SamePrompt(tuple(number for number, _ in places), have_ids)

    def _copies_of_ids(self) -> Iterator[int]:
        for places in self.prompts.values():
            names = [own for _, own in places]
            yield from (names.count(name) for name in set(names))


def _copies(counts: Iterator[int]) -> int | None:
    different = set(counts)
    return different.pop() if len(different) == 1 else None


def _items(prompt: Any) -> list[Any]:
    return prompt if isinstance(prompt, list) else [prompt]


def _is_message(item: Any) -> bool:
    return isinstance(item, Mapping) and isinstance(item.get("content"), str) and "role" in item


def _turn(item: Any) -> tuple[str, Any]:
    """Role and content, however a row names them."""
    if not isinstance(item, Mapping):
        return "user", item
    role = item.get("role") or item.get("from") or "user"
    content = next((item[key] for key in ("content", "value", "text") if key in item), None)
    return str({"human": "user", "gpt": "assistant", "model": "assistant"}.get(role, role)), content
