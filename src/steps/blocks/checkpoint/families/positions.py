"""Rotary positions and windows: where ``config.json`` says them, and how they are written.

Versions of transformers differ. Up to 4, ``rope_theta`` stands on top and ``rope_scaling`` beside
it; from 5 on, ``rope_parameters`` holds both, by sort of layer for Gemma 3. All are read, the
older form is written, which every version reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from nemotron_style.steps.blocks.checkpoint.families.family import Family
from nemotron_style.steps.blocks.settings.model_config import ModelConfig

FULL, SLIDING = "full_attention", "sliding_attention"
_NOT_SCALING = {"rope_theta", "rope_type", "type", "partial_rotary_factor"}
MOST_LAYERS = 10_000  # ModelConfig refuses more
_ORIGINAL = "original_max_position_embeddings"


class Misfit(ValueError):
    """A key of ``config.json`` asks for what is not computed here; ``key``, what, and allowed."""

    def __init__(self, key: str, what: str, allowed: str) -> None:
        super().__init__(what)
        self.key, self.what, self.allowed = key, what, allowed


class Rope(NamedTuple):
    """The tables for layers that see the whole row and for those with a window, and their key."""

    key: str
    whole: Mapping[str, Any]
    local: Mapping[str, Any]


def read_rope(settings: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """The fields of ModelConfig that say how positions are rotated.

    Raises Misfit for a scaling that is not computed here, or tables of another form.
    """
    rope = _tables(settings, family)
    values: dict[str, Any] = {
        "rope_theta": rope.whole.get("rope_theta", settings.get("rope_theta", family.rope_theta)),
        "rope_scaling": _scaling(rope, settings, family),
    }
    if family.local_rope_theta is not None:
        own = settings.get("rope_local_base_freq", family.local_rope_theta)
        values["local_rope_theta"] = rope.local.get("rope_theta", own)
    key, absent = family.keys.get("rotary_percent", ("partial_rotary_factor", 1.0))
    share = rope.whole.get(key, settings.get(key))
    if "rotary_percent" in family.keys:
        values["rotary_percent"] = absent if share is None else share
    elif share not in (None, 1):
        place = rope.key if key in rope.whole else key
        raise Misfit(place, "rotary positions on a part of each head", "1.0")
    return values


def write_rope(config: ModelConfig, family: Family) -> dict[str, Any]:
    """The keys of ``config.json`` for those fields."""
    scaling = config.rope_scaling
    values = {
        "rope_theta": config.rope_theta,
        "rope_scaling": None if scaling is None else scaling.model_dump(),
    }
    if family.local_rope_theta is not None:
        values["rope_local_base_freq"] = config.local_rope_theta
    return values


def _tables(settings: Mapping[str, Any], family: Family) -> Rope:
    scaling = settings.get("rope_scaling") or {}
    parameters = settings.get("rope_parameters") or {}
    for key, table in (("rope_scaling", scaling), ("rope_parameters", parameters)):
        if not isinstance(table, dict) and table != "default":
            raise Misfit(key, "rotary positions are scaled, and no table says how", "a table")
    scaling, parameters = ({} if table == "default" else table for table in (scaling, parameters))
    if family.local_rope_theta is None:
        key = "rope_scaling" if scaling else "rope_parameters"
        return Rope(key, scaling or parameters, {})
    parts = [parameters.get(sort) or {} for sort in (FULL, SLIDING)]
    if set(parameters) - {FULL, SLIDING} or not all(isinstance(part, dict) for part in parts):
        allowed = f"tables {FULL} and {SLIDING}"
        raise Misfit("rope_parameters", "rotary positions are scaled in another form", allowed)
    if _kind(parts[1]) != "default":
        what = "rotary positions are scaled in layers with a window"
        raise Misfit("rope_parameters", what, "default")
    return Rope("rope_scaling" if scaling else "rope_parameters", parts[0] | scaling, parts[1])


def _kind(table: Mapping[str, Any]) -> Any:
    return table.get("rope_type", table.get("type", "default"))


def _scaling(rope: Rope, settings: Mapping[str, Any], family: Family) -> dict[str, Any] | None:
    kind = _kind(rope.whole)
    rest = {
        key: value
        for key, value in rope.whole.items()
        if key not in _NOT_SCALING and value is not None
    }
    if kind == "default" and not rest:
        return None
    if kind not in family.rope_types:
        what = f"rotary positions are scaled by {kind}"
        if kind == "default":
            what = f"rotary positions are scaled by {', '.join(sorted(rest))}, and no type says how"
        raise Misfit(rope.key, what, ", ".join(("default", *family.rope_types)))
    if kind == "linear":
        rest.pop(_ORIGINAL, None)  # means nothing to it
    else:  # transformers gives the key on top the last word
        top = settings.get(_ORIGINAL)
        if top is not None:
            rest[_ORIGINAL] = top
        elif kind == "yarn":
            rest.setdefault(_ORIGINAL, settings.get(*family.all_keys["max_sequence_length"]))
    return {"rope_type": kind, **rest}


def read_windows(settings: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """The fields of ModelConfig that say which layers have a window.

    Raises Misfit for layers that no ``full_attention_every`` describes.
    """
    entry = family.keys.get("sliding_window")
    layers = min(settings["num_hidden_layers"], MOST_LAYERS)
    kinds = settings.get("layer_types") or None
    if entry is None or not family.lists_layer_types:
        if kinds is not None and (entry or not _consists_of(kinds, FULL)):
            raise Misfit("layer_types", "attention over a window in some layers", FULL)
        return {} if entry is None else {"sliding_window": settings.get(*entry)}
    window = settings.get(*entry)
    if family.windows_are_optional:
        if not settings.get("use_sliding_window"):
            if kinds is None:  # Qwen's own files say where windows would be, and that none is used
                return {"sliding_window": None}
            window = None
        first = settings.get("max_window_layers", 28)
        first = min(first, layers) if isinstance(first, int) else 0
        kinds = kinds or [FULL] * first + [SLIDING] * (layers - first)
    every = family.full_attention_every
    for key in ("sliding_window_pattern", "_sliding_window_pattern"):
        every = settings.get(key) or every
        if not isinstance(every, int):
            raise Misfit(key, "windows in layers of no period", "a number of layers")
    if kinds is not None:
        every = _period(kinds, layers)
    if window is None or every == 1:
        return {"sliding_window": None}
    return {"sliding_window": window, "full_attention_every": 0 if every > layers else every}


def _period(kinds: Any, layers: int) -> int:
    """The k of which every k-th layer sees the whole row; 0: none does."""
    if _consists_of(kinds, FULL, SLIDING) and len(kinds) == layers:
        every = kinds.index(FULL) + 1 if FULL in kinds else 0
        if kinds == [_sort(number, every) for number in range(1, layers + 1)]:
            return every
    what = "layers with and without a window follow no period"
    raise Misfit("layer_types", what, f"{layers} layers, of which every k-th is {FULL}")


def _consists_of(kinds: Any, *known: str) -> bool:
    return isinstance(kinds, list) and all(kind in known for kind in kinds)


def _sort(number: int, every: int) -> str:
    return FULL if every and number % every == 0 else SLIDING


def write_windows(config: ModelConfig, family: Family) -> dict[str, Any]:
    """The keys of ``config.json`` for those fields."""
    entry = family.keys.get("sliding_window")
    if entry is None:
        return {}
    window, every = config.sliding_window, config.full_attention_every
    values: dict[str, Any] = {entry[0]: window}
    if family.windows_are_optional:
        values["use_sliding_window"] = window is not None
        if window is None:
            return values
        values["max_window_layers"] = 0
    if family.lists_layer_types:
        numbers = range(1, config.num_layers + 1)
        values["layer_types"] = [
            FULL if window is None else _sort(number, every) for number in numbers
        ]
        if family.full_attention_every and every:
            values["sliding_window_pattern"] = every
    return values
