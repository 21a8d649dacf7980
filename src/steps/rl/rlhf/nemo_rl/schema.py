"""The keys of NeMo-RL and of the NeMo-Gym that it carries, by version: ``tables/*.json`` read.

A table has one key a line. ``need``: ``type`` where a class of NeMo-RL demands the key, ``code``
where a line of it indexes the key without a default. ``dead``: why nothing reads it. ``open``: the
table below takes keys that are not listed. ``closed``: the constructor behind its table takes no
others, and says so only when all workers are up. v0.8.0 is head with differences, and what was not
seen there is inferred.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from nemotron_style.steps.rl.rlhf.nemo_rl.version import Version

GYM = "env.nemo_gym"
COMPARE = f"{GYM}.genrm_compare_resources_server.resources_servers.genrm_compare"
JUDGE = f"{GYM}.genrm_model.responses_api_models.genrm_model"
SERVERS = {
    COMPARE: "genrm_compare",
    JUDGE: "genrm_model",
    f"{GYM}.policy_model.responses_api_models.vllm_model": "vllm_model",
    f"{GYM}.policy_model_reasoning_off.responses_api_models.vllm_model": "vllm_model",
    f"{GYM}.genrm_simple_agent.responses_api_agents.simple_agent": "simple_agent",
    f"{GYM}.genrm_simple_agent_reasoning_off.responses_api_agents.simple_agent": "simple_agent",
}
"""Where NeMo-Gym's servers stand that this step knows, and what kind each is."""
NULL_MEANS_ABSENT = ("logger.wandb.", "logger.swanlab.", "logger.mlflow.")
"""Keys that configs fill from variables of the machine, which need not be set."""


@dataclass(frozen=True)
class Key:
    """What a version knows of a key; ``kinds`` are the types that it may have."""

    kinds: tuple[str, ...]
    need: str = ""
    allowed: tuple[Any, ...] = ()
    least: float | None = None
    above: float | None = None
    most: float | None = None
    dead: str = ""
    open: bool = False
    closed: bool = False
    inferred: bool = False

    @property
    def is_table(self) -> bool:
        """Whether the keys below it are listed."""
        return "table" in self.kinds

    @property
    def range(self) -> str:
        """The numbers that it may have, in words; empty where any will do."""
        parts = [f">= {self.least:g}"] if self.least is not None else []
        parts += [f"> {self.above:g}"] if self.above is not None else []
        parts += [f"<= {self.most:g}"] if self.most is not None else []
        return "a number " + ", ".join(parts) if parts else ""

    def holds(self, value: float) -> bool:
        """Whether a number is in the range."""
        return (
            (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
        )


@dataclass(frozen=True)
class Nemotron:
    """What Nemotron's own configs hold without effect: keys that no release reads, and others.

    Those are taken out and told, where the same key from anybody else is refused.
    """

    dead: Mapping[str, Key]
    dropped: frozenset[str]


@cache
def keys_of(version: Version) -> Mapping[str, Key]:
    """Every key of a version, by its dotted name."""
    tables, servers = _read_tables(version)
    return tables | dict(_place_servers(servers))


@cache
def nemotron() -> Nemotron:
    """The keys of Nemotron's configs that decide nothing."""
    table = _read("nemotron")
    dead = {name: _key(row) for name, row in table["dead"].items()}
    return Nemotron(dead, frozenset(table["dropped"]) | frozenset(dead))


def versions_with(key: str) -> list[Version]:
    """The versions that know a key and read it."""
    return [each for each in Version if (found := keys_of(each).get(key)) and not found.dead]


def _read_tables(version: Version) -> tuple[dict[str, Key], dict[str, Key]]:
    table = _read(version)
    if "differs_from" not in table:
        return _keys(table["keys"]), _keys(table["gym"])
    base = _read(table["differs_from"])
    gone = [name.removesuffix(".*") for name in table["gone"]]
    kept = {name: row for name, row in base["keys"].items() if not _below(name, gone)}
    seen = [name.removesuffix(".*") for name in table["seen"]]
    old = {name: row | {"inferred": not _below(name, seen)} for name, row in kept.items()}
    servers = {name: row | {"inferred": True} for name, row in (base["gym"] | table["gym"]).items()}
    return _keys(old | table["new"]), _keys(servers)


def _below(name: str, blocks: list[str]) -> bool:
    return any(name == block or name.startswith(f"{block}.") for block in blocks)


def _place_servers(servers: Mapping[str, Key]) -> Iterator[tuple[str, Key]]:
    """The keys of each server at each place where it stands, and the tables above them."""
    for place, kind in SERVERS.items():
        parts = place.split(".")
        yield from ((".".join(parts[:end]), Key(("table",))) for end in range(3, len(parts) + 1))
        for name, key in servers.items():
            owner, _, below = name.partition(".")
            if owner == kind:
                yield f"{place}.{below}", key
    # It is the policy under another name, with other settings of its chat template.
    yield f"{GYM}.policy_model_reasoning_off._copy", Key(("str",))


def _keys(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Key]:
    return {name: _key(row) for name, row in rows.items()}


def _key(row: Mapping[str, Any]) -> Key:
    return Key(
        kinds=tuple(row["type"].split("|")),
        need=row.get("need", ""),
        allowed=tuple(row.get("allowed", ())),
        least=row.get("min"),
        above=row.get("above"),
        most=row.get("max"),
        dead=row.get("dead", ""),
        open=row.get("open", False),
        closed=row.get("closed", False),
        inferred=row.get("inferred", False),
    )


@cache
def _read(name: str) -> dict[str, Any]:
    path = files("nemotron_style.steps.rl.rlhf.nemo_rl.tables") / f"{name}.json"
    table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return table
