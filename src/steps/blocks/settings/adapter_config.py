"""``adapter_config.json`` of a LoRA adapter, as the package peft reads it; readable without torch.

What would make the adapter compute something else than ``scale * B @ A`` beside its layer is
refused by its key. Source: peft 0.21, ``LoraConfig`` and how ``LoraModel`` finds its layers.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nemotron_style.runtime.errors import InputError, Problem, raise_all
from nemotron_style.runtime.text_file import read_json_file
from nemotron_style.steps.blocks.settings.peft_config import LoraTuning

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ALL_LINEAR = "all-linear"
_HEAD = "lm_head"

_OFF = (None, False, "", [], {})
_MERGE = "merge it where it was made (merge_and_unload of the package peft), and take that model"
# Keys that change nothing in what a finished adapter computes, or that are read below.
_HARMLESS = {
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision"),
    *("task_type", "lora_dropout", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
    *("qalora_group_size", "megatron_core", "ensure_weight_tying", "runtime_config", "bias"),
    *("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    "init_lora_weights",
}
_WHAT = {
    "use_dora": "DoRA scales each row of the weights too",
    "modules_to_save": "whole layers were trained beside the adapter",
    "lora_bias": "the adapter has biases of its own",
    "fan_in_fan_out": "the weights of the layers are transposed",
    "layer_replication": "layers of the base are repeated",
    "trainable_token_indices": "rows of the embedding were trained",
    "target_parameters": "the adapter belongs to parameters and not to linear layers",
}
# These take the start of the adapter out of the weights of the base.
_CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class AdapterConfig:
    """What a module's adapter is: rank and scale by the module's name, and which modules have one.

    ``rank`` and ``alpha`` hold where no pattern matches. A pattern is a regular expression that
    the end of a module's name has to match; ``targets`` is a list of such ends, or one expression
    for whole names.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...] | str
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    use_rslora: bool = False
    dropout: float = 0.0
    excluded: tuple[str, ...] | str = ()
    layers: tuple[int, ...] = ()
    layers_pattern: tuple[str, ...] = ()

    def rank_of(self, module: str) -> int:
        """The rank of the adapter of a module, by Hugging Face's name of the module."""
        return self.rank_pattern.get(_find_pattern(self.rank_pattern, module), self.rank)

    def scale_of(self, module: str) -> float:
        """What ``B @ A`` is multiplied by."""
        alpha = self.alpha_pattern.get(_find_pattern(self.alpha_pattern, module), self.alpha)
        rank = self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def has(self, module: str) -> bool:
        """Whether peft puts an adapter beside this module."""
        if _matches(self.excluded, module):
            return False
        if self.targets == ALL_LINEAR:
            return module != _HEAD
        return _matches(self.targets, module) and self._has_layer(module)

    def _has_layer(self, module: str) -> bool:
        if not self.layers or isinstance(self.targets, str):
            return True
        patterns = [rf"(?:^|.*?\.){name}\.(\d+)\." for name in self.layers_pattern]
        found = [re.match(pattern, module) for pattern in patterns or [r".*?\.[^.]*\.(\d+)\."]]
        number = next((match[1] for match in found if match), None)
        return number is not None and int(number) in self.layers


def _find_pattern(patterns: Mapping[str, Any], module: str) -> str:
    fits = (key for key in patterns if re.match(rf"(.*\.)?({key})$", module))
    return next(fits, module)


def _matches(names: tuple[str, ...] | str, module: str) -> bool:
    if isinstance(names, str):
        return bool(re.fullmatch(names, module))
    return any(module == name or module.endswith(f".{name}") for name in names)


def write_adapter_config(ranks: Mapping[str, int], lora: LoraTuning) -> dict[str, Any]:
    """``adapter_config.json`` of adapters with these ranks, by Hugging Face's names of modules.

    Each is scaled by ``lora.scale``, whatever its rank is.
    """
    dim = lora.adapter_dim
    count = Counter(name.rpartition(".")[2] for name in ranks)
    # A name's end is enough where all layers have such an adapter.
    whole = len(set(count.values())) > 1 or len(count) * _count_layers(ranks) != len(ranks)
    others = {name: rank for name, rank in ranks.items() if rank != dim}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": dim,
        "lora_alpha": _plain(lora.alpha or dim),
        "lora_dropout": lora.adapter_dropout,
        "target_modules": sorted(ranks) if whole else sorted(count),
        "rank_pattern": others,
        "alpha_pattern": {name: _plain(lora.scale * rank) for name, rank in others.items()},
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
    }


def _count_layers(names: Mapping[str, Any]) -> int:
    return len({match[0] for name in names if (match := re.search(r"layers\.\d+\.", name))})


def _plain(number: float) -> float | int:
    return int(number) if number == int(number) else number


def read_adapter_config(path: Path) -> AdapterConfig:
    """The ``adapter_config.json`` of a folder.

    Raises InputError with every key that asks for something else than plain low-rank products.
    """
    values, where = read_json_file(path / ADAPTER_CONFIG, InputError), str(path / ADAPTER_CONFIG)
    kind = values.get("peft_type")
    if kind != "LORA":
        what = "the adapter is of another kind"
        problem = Problem(where=where, key="peft_type", what=what, got=repr(kind), fix=_MERGE)
        raise InputError(replace(problem, allowed="LORA"))
    problems = [*_find_unknown(values, where), *_find_wrong(values, where)]
    raise_all(InputError, problems)
    return AdapterConfig(
        rank=values["r"],
        alpha=values["lora_alpha"],
        targets=_names(values.get("target_modules")),
        rank_pattern=values.get("rank_pattern") or {},
        alpha_pattern=values.get("alpha_pattern") or {},
        use_rslora=bool(values.get("use_rslora")),
        dropout=values.get("lora_dropout") or 0.0,
        excluded=_names(values.get("exclude_modules")),
        layers=_as_tuple(values.get("layers_to_transform")),
        layers_pattern=_as_tuple(values.get("layers_pattern")),
    )


def _find_unknown(values: Mapping[str, Any], where: str) -> Iterator[Problem]:
    """Keys that are switched on and change what is computed, or may do so."""
    for key, value in values.items():
        if key in _HARMLESS or value in _OFF:
            continue
        what = _WHAT.get(key, "this may change what the adapter computes")
        got = str(value)[:80]
        yield Problem(where=where, key=key, what=what, got=got, allowed="null or false", fix=_MERGE)
    if values.get("bias", "none") != "none":
        what, got = "biases of the base were trained too", str(values["bias"])
        yield Problem(where=where, key="bias", what=what, got=got, allowed="none", fix=_MERGE)
    start = values.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_THE_BASE):
        what = "the adapter belongs to weights from which its start was taken"
        fix = "save it with path_initial_model_for_weight_conversion, which makes plain LoRA of it"
        key = "init_lora_weights"
        yield Problem(where=where, key=key, what=what, got=start, allowed="true", fix=fix)


def _find_wrong(values: Mapping[str, Any], where: str) -> Iterator[Problem]:
    """Keys that are read and hold what they cannot."""
    for key, value, kind in (
        *(("r", values.get("r"), int), ("lora_alpha", values.get("lora_alpha"), float)),
        *((f"rank_pattern.{k}", v, int) for k, v in _items(values.get("rank_pattern"))),
        *((f"alpha_pattern.{k}", v, float) for k, v in _items(values.get("alpha_pattern"))),
    ):
        is_number = isinstance(value, int | kind) and not isinstance(value, bool)
        if not (is_number and value > 0 and math.isfinite(value)):
            what, allowed = "is no such number", "a number above 0"
            yield Problem(where=where, key=key, what=what, got=repr(value), allowed=allowed)
    targets, key = values.get("target_modules"), "target_modules"
    if not (isinstance(targets, str | list) and targets):
        what, allowed = "names no modules", "a list of names, or a regular expression"
        yield Problem(where=where, key=key, what=what, got=repr(targets), allowed=allowed)
    for key in ("target_modules", "exclude_modules", "rank_pattern", "alpha_pattern"):
        value = values.get(key)
        for text in [value] if isinstance(value, str) else _items(value):
            try:
                re.compile(text if isinstance(text, str) else text[0])
            except re.error as error:
                what = f"is no regular expression: {error}"
                yield Problem(where=where, key=key, what=what, got=repr(text))


def _items(pattern: Any) -> Iterator[tuple[str, Any]]:
    yield from pattern.items() if isinstance(pattern, dict) else ()


def _names(value: Any) -> tuple[str, ...] | str:
    if isinstance(value, str):
        return ALL_LINEAR if value.lower() == ALL_LINEAR else value
    return tuple(map(str, value or ()))


def _as_tuple(value: Any) -> tuple[Any, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (value,)


def check_adapter_files(path: Path) -> None:
    """Raise InputError where the folder is no adapter, or one whose weights are pickled."""
    where = str(path)
    if not (path / ADAPTER_CONFIG).is_file():
        what, allowed = "is no LoRA adapter", f"a folder with {ADAPTER_CONFIG}, as peft saves it"
        raise InputError(Problem(where=where, what=what, allowed=allowed))
    if (path / ADAPTER_WEIGHTS).is_file():
        return
    if pickles := sorted(path.glob("adapter_model.*")):
        what = "pickled weights are not read: a pickle can run any code"
        fix = "where you trust the file: load the adapter with peft (PeftModel.from_pretrained) "
        fix += "and save it again (save_pretrained), which writes safetensors"
        where, allowed = str(pickles[0]), ADAPTER_WEIGHTS
        raise InputError(Problem(where=where, what=what, allowed=allowed, fix=fix))
    raise InputError(Problem(where=where, key=ADAPTER_WEIGHTS, what="there are no weights"))
