"""Whether a version of NeMo-RL knows every key that was given, and takes its value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nemotron_style.runtime.errors import Problem, suggest
from nemotron_style.steps.rl.rlhf.nemo_rl.draft import ABSENT, find, show
from nemotron_style.steps.rl.rlhf.nemo_rl.schema import GYM, JUDGE, Key, keys_of, versions_with
from nemotron_style.steps.rl.rlhf.nemo_rl.version import Version

SERVER_KINDS = (
    "responses_api_models",
    "resources_servers",
    "responses_api_agents",
    "environment_servers",
)
FROM_OTHERS = ("_copy", "_inherit_from")
"""Directives of NeMo-Gym: the block begins as another one."""
WORDS = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "a string",
    "null": "null",
    "table": "a table of keys",
}


def check_keys(given: Mapping[str, Any], version: Version, above: str = "") -> Iterator[Problem]:
    """Every key that the version does not know or does not read, and every value it refuses."""
    known = keys_of(version)
    for name, value in given.items():
        key = f"{above}{name}"
        row = known.get(key)
        if row is None:
            yield from _check_unknown(key, value, version)
        elif row.dead and not row.need:
            what = f"decides nothing in NeMo-RL {version}: {row.dead}"
            yield Problem(key=key, what=what, got=show(value), fix="leave it out")
        elif row.is_table and isinstance(value, Mapping):
            yield from check_keys(value, version, f"{key}.")
        elif not any(_fits(value, kind) for kind in row.kinds):
            allowed = " or ".join(dict.fromkeys(_words(kind) for kind in row.kinds))
            yield Problem(
                key=key,
                what=f"does not fit NeMo-RL {version}",
                got=show(value),
                allowed=allowed,
            )
        else:
            yield from _check_value(key, value, row, version)


def find_missing(values: Mapping[str, Any], version: Version) -> list[str]:
    """The keys that the version needs and a complete config does not have.

    A key is needed where the table that holds it is there.
    """
    without_gym = find(values, "env.should_use_nemo_gym") is False
    return [
        key
        for key, row in keys_of(version).items()
        if row.need
        and not (without_gym and key == GYM)
        and not row.inferred
        and key not in NOT_ON_THIS_PATH
        and not key.startswith(FROM_YAML)
        and isinstance(find(values, key.rpartition(".")[0]) if "." in key else values, Mapping)
        and find(values, key) is ABSENT
    ]


NOT_ON_THIS_PATH = frozenset(
    {
        # with use_multiple_dataloader, which one file of prompts does not need
        "data.custom_dataloader",
        "data.num_prompts_per_dataloader",
        # with use_linear_ce_fusion_loss alone
        "policy.megatron_cfg.linear_ce_fusion_chunk_size",
        "policy.megatron_cfg.fused_linear_logprobs_chunk_size",
        "data.train.dataset_name",  # stands in data.default
        f"{JUDGE}.api_key",  # LocalVLLMModel has defaults for both
        f"{JUDGE}.base_url",
    }
)
FROM_YAML = (f"{GYM}.policy_model", f"{GYM}.genrm_simple_agent")
"""Servers that the files of ``config_paths`` complete."""


def _check_unknown(key: str, value: Any, version: Version) -> Iterator[Problem]:
    above = key.rpartition(".")[0]
    known = keys_of(version)
    if above and known.get(above) is not None and known[above].open:
        return
    if above == GYM:
        yield from _check_server(key, value, version)
        return
    if above == f"{GYM}.genrm_model.responses_api_models":
        what = "is no implementation of the judge: it would not show the answers to compare"
        yield Problem(key=key, what=what, allowed="genrm_model")
        return
    others = versions_with(key)
    fix = f"leave it out, or use {' or '.join(others)}" if others else suggest(key, known)
    what = f"is not known to NeMo-RL {version}"
    if above in known and known[above].closed:
        what += ", whose constructor refuses it"
    yield Problem(key=key, what=what, got=show(value), fix=fix)


def _check_server(key: str, value: Any, version: Version) -> Iterator[Problem]:
    """A block of NeMo-Gym that we do not know is a server with an entrypoint, or it is ignored."""
    table = value if isinstance(value, Mapping) else {}
    inner = [table[kind] for kind in SERVER_KINDS if isinstance(table.get(kind), Mapping)]
    blocks = [block for kind in inner for block in kind.values() if isinstance(block, Mapping)]
    begun = any(name in table for name in FROM_OTHERS)
    if begun or (len(inner) == len(blocks) == 1 and "entrypoint" in blocks[0]):
        return
    siblings = [name for name in keys_of(version) if name.startswith(f"{GYM}.")]
    names = [name.removeprefix(f"{GYM}.") for name in siblings if name.count(".") == 2]
    others = versions_with(key)
    fix = f"leave it out, or use {' or '.join(others)}" if others else ""
    yield Problem(
        key=key,
        what="is no key of NeMo-Gym and no server: NeMo-Gym would ignore it",
        got=show(value),
        allowed=f"one of {', '.join(SERVER_KINDS)}, with one table that has an entrypoint",
        fix=fix or suggest(key.rpartition(".")[2], names),
    )


def _fits(value: Any, kind: str) -> bool:
    if kind == "any":
        return True
    if value is None or kind == "null":
        return value is None and kind == "null"
    if isinstance(value, bool):
        return kind == "bool"
    if isinstance(value, int | float):
        return kind == "float" or (kind == "int" and isinstance(value, int))
    if isinstance(value, str):
        return kind == "str" or _is_open(value)
    name = "list" if isinstance(value, list) else "dict"
    return kind.startswith(name) or (kind == "table" and name == "dict")


def _is_open(value: Any) -> bool:
    """Whether a value is known in the job alone."""
    return isinstance(value, str) and value.startswith("${oc.")


def _words(kind: str) -> str:
    return WORDS.get(kind) or ("a list" if kind.startswith("list") else "a table of keys")


def _check_value(key: str, value: Any, row: Key, version: Version) -> Iterator[Problem]:
    if row.allowed and value is not None and not _is_open(value) and value not in row.allowed:
        allowed = ", ".join(map(str, row.allowed))
        what = f"does not fit NeMo-RL {version}"
        yield Problem(key=key, what=what, got=show(value), allowed=allowed)
    elif isinstance(value, int | float) and not isinstance(value, bool) and not row.holds(value):
        what = f"does not fit NeMo-RL {version}"
        yield Problem(key=key, what=what, got=show(value), allowed=row.range)
