"""``config.json`` of a family and a model's sizes: the same facts, and what has no counterpart.

Hugging Face's file can ask for things that the model here does not do. Each of them would load
without complaint and compute something else, so each is refused, by its key. What a family says
is in :mod:`families.table`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nemotron_style.runtime.errors import InputError, Problem, raise_all
from nemotron_style.steps.blocks.checkpoint.families.family import Family
from nemotron_style.steps.blocks.checkpoint.families.positions import (
    Misfit,
    read_rope,
    read_windows,
    write_rope,
    write_windows,
)
from nemotron_style.steps.blocks.checkpoint.families.table import (
    BY_ARCHITECTURE,
    BY_MODEL_TYPE,
    FAMILIES,
    OTHER_FAMILIES,
)
from nemotron_style.steps.blocks.settings.hub_code import find_code_keys
from nemotron_style.steps.blocks.settings.json_model import validation_problems
from nemotron_style.steps.blocks.settings.model_config import ModelConfig

CONFIG_FILE = "config.json"

# What every family's file has to say.
_NEEDED = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "ffn_hidden_size": "intermediate_size",
    "num_attention_heads": "num_attention_heads",
    "vocab_size": "vocab_size",
}
_SCALAR, MOST_SCALAR = "query_pre_attn_scalar", 2**20

# Key, what it asks for, what is allowed. They hold for every family.
_OFF = (None, False, "", [], {})
_NEVER = (
    ("num_local_experts", "a mixture of experts", "none"),
    ("num_experts", "a mixture of experts", "none"),
    ("quantization_config", "quantised weights", "float32, float16 or bfloat16"),
)
_WHAT = {
    "hidden_act": "another activation in the MLP",
    "hidden_activation": "another activation in the MLP",
    "attention_bias": "biases in attention",
    "mlp_bias": "biases in the MLP",
    "use_bidirectional_attention": "attention to later tokens",
}
# What says which numbers a model computes, besides what the table names. Nothing else of an
# untrusted config.json is handed to another library.
_MEANING = (
    *_NEEDED.values(),
    *("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor", "pretraining_tp"),
    *("rope_local_base_freq", "original_max_position_embeddings", _SCALAR),
    *("layer_types", "sliding_window_pattern", "use_sliding_window", "max_window_layers"),
)


def build_settings(
    config: ModelConfig, *, dtype: str, token_ids: Mapping[str, Any]
) -> dict[str, Any]:
    """The ``config.json`` of a model, as its family has it.

    ``dtype`` is that of the weights; ``token_ids`` holds ``bos_token_id`` and the like. The keys
    are those that every version of transformers reads which knows the family. Raises InputError
    for a switch that the family has no key for.
    """
    check_family(config)
    return {**_write_values(config), "torch_dtype": dtype, **token_ids}


def check_family(config: ModelConfig) -> None:
    """Raise InputError, naming every switch that no ``config.json`` of the model's family says."""
    family = BY_ARCHITECTURE[config.architecture]
    if not (unsaid := _unsaid(config)):
        return
    others = [config.model_copy(update={"architecture": name}) for name in BY_ARCHITECTURE]
    fits = ", ".join(other.architecture for other in others if not _unsaid(other))
    what = f"config.json of {family.name} has no key for this switch"
    fix = f"it is a model of {fits}: name that as architecture in model_config.json"
    if not fits:
        fix = "no family has all switches of this model: Hugging Face has no class for it"
    raise InputError(
        Problem(key=name, what=what, got=str(getattr(config, name)), fix=fix) for name in unsaid
    )


def _unsaid(config: ModelConfig) -> list[str]:
    """The fields that would be read as others from the ``config.json`` of the model's family."""
    family = BY_ARCHITECTURE[config.architecture]
    values = _read_values(_write_values(config), family, [])
    try:
        read = ModelConfig.model_validate(values)
    except ValidationError:  # a part of what belongs together is missing
        return list(config.switched) or ["architecture"]
    names = ModelConfig.model_fields
    return [name for name in names if getattr(config, name) != getattr(read, name)]


def _write_values(config: ModelConfig) -> dict[str, Any]:
    """What ``config.json`` says about the model itself; the inverse of :func:`_read_values`."""
    family = BY_ARCHITECTURE[config.architecture]
    ours = {name: getattr(config, name) for name in ModelConfig.model_fields}
    ours["kv_channels"] = config.head_size
    return {
        "architectures": [family.causal_class],
        "model_type": family.model_type,
        **{theirs: ours[name] for name, theirs in _NEEDED.items()},
        **{theirs: ours[name] for name, (theirs, _) in family.all_keys.items()},
        **write_rope(config, family),
        **{key: allowed[0] for key, allowed in family.says.items()},
        **write_windows(config, family),
        **({_SCALAR: _scalar(config)} if family.scales_queries else {}),
    }


def _scalar(config: ModelConfig) -> float | int:
    """What Gemma has for the scale of the softmax: the number whose root it divides by."""
    exact = round(config.softmax_scale**-2, 6)  # 144 ** -0.5 ** -2 is 144.00000000000003
    return int(exact) if exact == int(exact) else exact


def read_settings(path: Path) -> dict[str, Any]:
    """The ``config.json`` of a folder. Raises InputError when there is none to read."""
    file = path / CONFIG_FILE
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        what = "is no Hugging Face checkpoint: there is no config.json"
        raise InputError(Problem(where=str(path), what=what)) from error
    except (ValueError, RecursionError) as error:
        raise InputError(Problem(where=str(file), what="is not JSON", got=str(error))) from error
    if not isinstance(settings, dict):
        raise InputError(Problem(where=str(file), what="is not a JSON object"))
    return settings


def keep_meaning(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a checked ``config.json`` that says what the model computes."""
    family = BY_MODEL_TYPE[settings["model_type"]]
    kept = {*_MEANING, *family.says, *(theirs for theirs, _ in family.all_keys.values())}
    return {key: value for key, value in settings.items() if key in kept}


def read_family(settings: Mapping[str, Any], *, where: str = "") -> Family:
    """The family of a ``config.json``. Raises InputError where it is none that is known."""
    if family := BY_MODEL_TYPE.get(str(settings.get("model_type"))):
        return family
    fix = OTHER_FAMILIES
    if settings.get("model_type") == "gemma3":
        fix = "save its text part alone, as Gemma3ForCausalLM; what reads images is not converted"
    raise InputError(
        Problem(
            where=where,
            key="model_type",
            what="the model cannot be represented: another architecture",
            got=json.dumps(settings.get("model_type")),
            allowed=", ".join(family.model_type for family in FAMILIES),
            fix=fix,
        )
    )


def read_sizes(path: Path) -> ModelConfig:
    """The sizes and switches of the model in a folder.

    Raises InputError with everything in its ``config.json`` that a ModelConfig cannot hold.
    """
    return parse_sizes(read_settings(path), path)


def parse_sizes(settings: Mapping[str, Any], path: Path) -> ModelConfig:
    """:func:`read_sizes` of settings that were read from the folder ``path``."""
    where = str(path / CONFIG_FILE)
    problems = [*_strange_files(path), *find_code_keys(settings, where=where)]
    problems += _misfits(settings, _NEVER_ALLOWED, where)
    try:
        family = read_family(settings, where=where)
    except InputError as error:
        raise InputError([*error.problems, *problems]) from error
    problems += _misfits(settings, _rules(family), where)
    problems += _missing_sizes(settings, where)
    values = _read_values(settings, family, problems, where=where)
    raise_all(InputError, problems)
    try:
        return ModelConfig.model_validate(values)
    except ValidationError as error:
        names = _NEEDED | {name: theirs for name, (theirs, _) in family.all_keys.items()}
        raise InputError(
            replace(problem, key=names.get(problem.key, problem.key))
            for problem in validation_problems(error, where=where)
        ) from error


def _read_values(
    settings: Mapping[str, Any], family: Family, problems: list[Problem], *, where: str = ""
) -> dict[str, Any]:
    """The fields of ModelConfig; what has no counterpart is added to ``problems``."""

    def attempt(read: Callable[[Mapping[str, Any], Family], dict[str, Any]]) -> dict[str, Any]:
        try:
            return read(settings, family)
        except Misfit as misfit:
            problems.append(_misfit(settings, misfit.key, misfit.what, misfit.allowed, where))
            return {}

    values: dict[str, Any] = {"architecture": family.architecture, **family.switches}
    values |= {name: settings.get(theirs) for name, theirs in _NEEDED.items()}
    values |= {name: settings.get(*entry) for name, entry in family.all_keys.items()}
    if not any(_missing_sizes(settings, where)):
        for read in (read_rope, read_windows, _read_derived):
            values |= attempt(read)
    return values


def _read_derived(settings: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """Fields whose values follow from several keys, in the form in which they are compared."""
    hidden, heads = settings["hidden_size"], settings["num_attention_heads"]
    groups, size = (settings.get(*family.all_keys[name]) for name in _OF_HEADS)
    if size is not None and not (isinstance(size, int) and size > 0):
        raise Misfit("head_dim", "heads are of no width", "a number")
    plain = hidden // heads if heads > 0 and hidden % heads == 0 else None
    values: dict[str, Any] = {
        "num_query_groups": heads if groups is None else groups,
        "kv_channels": None if size == plain else size,
    }
    if family.scales_queries:
        scalar = settings.get(_SCALAR, 256)
        if not isinstance(scalar, int | float) or not 0 < scalar <= MOST_SCALAR:
            what = "the scale of the softmax is none that a model has"
            raise Misfit(_SCALAR, what, f"a number above 0, {MOST_SCALAR} at most")
        values["query_scale"] = None if scalar == (size or plain) else scalar**-0.5
    if family.scales_embeddings:
        values["embedding_multiplier"] = min(hidden, MOST_SCALAR) ** 0.5
    return values


_OF_HEADS = ("num_query_groups", "kv_channels")


def _strange_files(path: Path) -> Iterator[Problem]:
    file = path / "adapter_config.json"
    if file.exists():
        fix = "merge the adapter into the model's weights first"
        yield Problem(where=str(file), what="the folder holds an adapter", fix=fix)
    file = path / "custom_generate"
    if file.exists():  # transformers runs it when it reads the model beside it
        fix = "remove it where you trust the model"
        yield Problem(where=str(file), what="the folder holds code", fix=fix)


_Rule = tuple[str, tuple[Any, ...], str, str]
"""Key, the values that mean what the model does, what another asks for, what is allowed."""
_NEVER_ALLOWED: tuple[_Rule, ...] = tuple((key, _OFF, what, said) for key, what, said in _NEVER)


def _rules(family: Family) -> Iterator[_Rule]:
    """What a family's file may say, besides sizes and positions."""
    one = [family.causal_class]
    yield "architectures", (None, one), "another architecture", family.causal_class
    for key, allowed in family.says.items():
        values = _OFF if allowed == (False,) else (None, *allowed)
        yield key, values, _WHAT[key], json.dumps(allowed[0]).strip('"')
    if "sliding_window" not in family.keys:
        yield "sliding_window", _OFF, "attention over a window", "null"


def _misfits(settings: Mapping[str, Any], rules: Iterable[_Rule], where: str) -> Iterator[Problem]:
    for key, values, what, allowed in rules:
        if settings.get(key) not in values:
            yield _misfit(settings, key, what, allowed, where)


def _missing_sizes(settings: Mapping[str, Any], where: str) -> Iterator[Problem]:
    for name, theirs in _NEEDED.items():
        if not isinstance(settings.get(theirs), int):
            what, got = "a size is missing", json.dumps(settings.get(theirs))
            yield Problem(where=where, key=theirs, what=what, got=got, allowed=f"{name}, a number")


def _misfit(settings: Mapping[str, Any], key: str, what: str, allowed: str, where: str) -> Problem:
    what = f"the model cannot be represented: {what}"
    got = json.dumps(settings.get(key))
    return Problem(where=where, key=key, what=what, got=got, allowed=allowed)
