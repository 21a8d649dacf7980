"""Settings of ``rl/rlhf`` with ``backend: nemo_rl``: the keys of NeMo-RL, of every version.

The tables are made from ``tables/*.json``. Every key may be left out, and only what was given is
dumped: absent and null differ, and what is absent is decided when the job is compiled. Which
version knows which key is checked there, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from operator import or_
from typing import Any, Literal

from pydantic import ConfigDict, Field, create_model, model_serializer
from pydantic.fields import FieldInfo

from nemotron_style.runtime.config.model import Section, StepConfig, cosmetic
from nemotron_style.steps.rl.rlhf.nemo_rl.schema import (
    GYM,
    JUDGE,
    NULL_MEANS_ABSENT,
    Key,
    keys_of,
    nemotron,
)
from nemotron_style.steps.rl.rlhf.nemo_rl.version import Version

KINDS: Mapping[str, Any] = {
    "bool": bool,
    "int": int,
    "float": float,
    "str": str,
    "null": None,
    "any": Any,
    "dict": dict[str, Any],
    "list": list[Any],
    "list[str]": list[str],
    "list[int]": list[int],
    "list[float]": list[float],
    "dict[str, str]": dict[str, str],
    "dict[str, int]": dict[str, int],
}
OWN: Mapping[str, Key] = {
    "data.allow_train_as_validation": Key(("bool",)),
    "data.default_agent_ref": Key(("str", "dict", "null")),
    "data.manifest_path": Key(("str", "null")),
    "data.normalized_data_dir": Key(("str", "null")),
    "data.train.data_path": Key(("str", "null")),
    "data.validation.data_path": Key(("str", "null")),
    "policy.pretrained_checkpoint.path": Key(("str", "null")),
    f"{GYM}.genrm_compare": Key(("dict", "null")),
    f"{GYM}.genrm_model.responses_api_models.vllm_model": Key(("table", "null"), open=True),
    f"{GYM}.genrm_model.responses_api_models.vllm_model.model": Key(("str", "null")),
    f"{GYM}.genrm_model.vllm": Key(("table", "null"), open=True),
    **{
        name.replace(f"{JUDGE}.vllm_serve_kwargs", f"{GYM}.genrm_model.vllm"): key
        for name, key in keys_of(Version.HEAD).items()
        if name.startswith(f"{JUDGE}.vllm_serve_kwargs.")
    },
    "run": Key(("dict", "null")),
}
"""Keys of this project, and names that Nemotron's documentation gives to others."""
OPEN = (GYM, f"{GYM}.genrm_model.responses_api_models")
"""Tables in which NeMo-Gym finds servers by names that anybody may choose."""
COSMETIC = (
    "logger",
    "cluster",
    "telemetry",
    "run",
    "checkpointing.checkpoint_dir",
    "data.normalized_data_dir",
    "policy.generation.port_range_low",
    "policy.generation.port_range_high",
    f"{GYM}.port_range_low",
    f"{GYM}.port_range_high",
    f"{GYM}.num_gpu_nodes",
    f"{GYM}.uv_venv_dir",
    f"{GYM}.uv_cache_dir",
    f"{JUDGE}.hf_home",
    "env.reward_model.resources",
)
"""Keys that say where a run works, not what it computes."""


class Table(Section):
    """A table of NeMo-RL's config: what was not given is not dumped."""

    model_config = ConfigDict(defer_build=True, validate_default=False)

    @model_serializer(mode="plain")
    def _dump_given(self) -> dict[str, Any]:
        fields, extra = type(self).model_fields, self.model_extra or {}
        given = (name for name in fields if name in self.model_fields_set)
        return {_key_name(fields[name], name): getattr(self, name) for name in given} | extra

    def __getattr__(self, name: str) -> Any:
        # Pydantic takes no field whose name begins with _: such a key has another name inside.
        if name.startswith("_") and not name.endswith("__"):
            inside = _field_name(name)
            if inside in type(self).model_fields:
                return getattr(self, inside)
        return super().__getattr__(name)  # type: ignore[misc]


def _key_name(field: FieldInfo, name: str) -> str:
    """The key of a field in a file."""
    return field.validation_alias if isinstance(field.validation_alias, str) else name


class OpenTable(Table):
    """A table that may hold keys beside those that are known."""

    model_config = ConfigDict(extra="allow")


class NemoRl(Section):
    """``nemo_rl``: which NeMo-RL, and how long it may be silent."""

    version: Version | None = Field(default=None, description="null: as the image's tag says")
    image: str | None = Field(default=None, description="null: that of the profile or the step")
    stall_minutes: float | None = cosmetic(
        default=None, gt=0, description="no progress ends the run; null: from the judge's budget"
    )
    environment: dict[str, str] = Field(
        default={}, description="variables of the job, over those that are compiled"
    )


def _field_name(key: str) -> str:
    return key if not key.startswith("_") else f"{key.strip('_')}_"


def _union() -> dict[str, Key]:
    """Every key that some version knows, with all types and values that it may have there."""
    union: dict[str, Key] = {}
    for table in (*map(keys_of, Version), nemotron().dead, OWN):
        for name, key in table.items():
            old = union.get(name, key)
            kinds = tuple(dict.fromkeys((*old.kinds, *key.kinds)))
            both = old.allowed and key.allowed
            allowed = tuple(dict.fromkeys((*old.allowed, *key.allowed))) if both else ()
            if name.startswith(NULL_MEANS_ABSENT):
                kinds = tuple(dict.fromkeys((*kinds, "null")))
            union[name] = Key(kinds, allowed=allowed, open=old.open or key.open)
    return union


def _annotation(name: str, key: Key, tables: Mapping[str, type[Table]]) -> Any:
    kinds = [kind for kind in key.kinds if kind not in ("table", "null")]
    if key.allowed and set(kinds) == {"str"}:
        members: list[Any] = [Literal[key.allowed]]
    else:
        members = [KINDS[kind] for kind in kinds]
    if key.is_table:
        members.append(tables[name])
    if Any in members:
        return Any
    return reduce(or_, members, None) if "null" in key.kinds else reduce(or_, members)


def _build() -> dict[str, Any]:
    """The fields of the config; the tables below are made from the innermost outwards."""
    keys = _union()
    fields: dict[str, dict[str, Any]] = {name: {} for name, key in keys.items() if key.is_table}
    fields[""] = {}
    tables: dict[str, type[Table]] = {}
    for name in sorted(keys, key=lambda name: -name.count(".")):
        key, (above, _, last) = keys[name], name.rpartition(".")
        if key.is_table:
            base = OpenTable if key.open or name in OPEN else Table
            tables[name] = create_model(f"Table_{name}", __base__=base, **fields[name])
        kind = _annotation(name, key, tables)
        fields[above][_field_name(last)] = (kind, _field(name, last))
    return fields[""]


def _field(name: str, last: str) -> FieldInfo:
    alias = last if last.startswith("_") else None
    extra: Any = {"cosmetic": True} if name in COSMETIC else None
    field: FieldInfo = Field(default=None, validation_alias=alias, json_schema_extra=extra)
    return field


class Given(StepConfig):
    """The base of the config: what was not given is not dumped, but for the tables of ours."""

    model_config = ConfigDict(defer_build=True, validate_default=False)

    @model_serializer(mode="plain")
    def _dump_given(self) -> dict[str, Any]:
        own = {"backend", "seed", "nemo_rl"}
        return {name: getattr(self, name) for name in sorted(self.model_fields_set | own)}


Upstream: Any = create_model("Upstream", __base__=Given, **_build())


class Config(Upstream):  # type: ignore[misc]  # made from the tables above
    """Settings of an RLHF run on NeMo-RL."""

    backend: Literal["nemo_rl"] = "nemo_rl"
    nemo_rl: NemoRl = NemoRl()
