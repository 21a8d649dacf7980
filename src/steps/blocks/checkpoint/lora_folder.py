"""A low-rank adapter on disk, as the package peft lays it out, with what it belongs to.

::

    adapter_config.json         peft's: ranks, scale, modules
    adapter_model.safetensors   A and B of each module, by Hugging Face's names
    base.json                   the model that it was trained on (AdapterBase)
    tokenizer/                  that with which it was trained

peft loads the folder as it is, on top of the base as ``convert/megatron_to_hf`` writes it. Folders
that peft wrote have the first two; their tokenizer may lie beside these.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from nemotron_style.runtime.errors import InputError, Problem, raise_all
from nemotron_style.steps.blocks.checkpoint.families.adapters import (
    LayerAdapter,
    export_adapter,
    hf_modules,
    hf_shapes,
    import_adapter,
    linear_layers,
)
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import TOKENIZER
from nemotron_style.steps.blocks.checkpoint.safetensors_folder import TensorFolder, write_file
from nemotron_style.steps.blocks.settings.adapter_config import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    AdapterConfig,
    check_adapter_files,
    read_adapter_config,
    write_adapter_config,
)
from nemotron_style.steps.blocks.settings.model_config import ModelConfig
from nemotron_style.steps.blocks.settings.peft_config import (
    BASE_FILE,
    AdapterBase,
    LoraTuning,
    read_adapter_base,
)

_PREFIX = "base_model.model."
_PARTS = (".lora_A", ".lora_B")


@dataclass(frozen=True)
class LoraFolder:
    """An adapter that was read: by megatron's name of a layer, what it adds to it."""

    adapters: Mapping[str, LayerAdapter]
    config: AdapterConfig
    base: AdapterBase | None
    tokenizer: Path | None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """``LAYER.lora_A`` and ``LAYER.lora_B`` of each layer."""
        return {
            f"{layer}{part}": tensor
            for layer, adapter in self.adapters.items()
            for part, tensor in zip(_PARTS, adapter[:2], strict=True)
        }

    def find_misfits(self, lora: LoraTuning, *, where: str) -> list[Problem]:
        """What keeps a model with the adapters of ``lora`` from going on with this one."""
        wanted = set(lora.modules)
        held = {layer.split(".", 3)[3] for layer in self.adapters}
        ranks = sorted({len(one.lora_A) for one in self.adapters.values()})
        scales = sorted({one.scale for one in self.adapters.values()})
        facts = (
            ("target_modules", sorted(held), sorted(wanted)),
            ("adapter_dim", ranks, [lora.adapter_dim]),
            ("alpha", scales, [lora.scale]),
        )
        fix = (
            "set the keys of model.peft.lora_tuning as the adapter has them, or merge it into its "
        )
        fix += "base with convert/merge_lora and begin a new one"
        return [
            Problem(
                where=where,
                key=f"model.peft.lora_tuning.{key}",
                what="the adapter to go on from is another"
                + (" (alpha / adapter_dim)" if key == "alpha" else ""),
                got=", ".join(map(str, given)),
                allowed=", ".join(map(str, own)),
                fix=fix,
            )
            for key, own, given in facts
            if own != given
        ]


def write_lora(
    path: Path,
    tensors: Mapping[str, Tensor],
    *,
    lora: LoraTuning,
    base: AdapterBase,
    tokenizer: Path,
) -> None:
    """Write an adapter into the directory ``path``; ``tokenizer`` is a directory to copy.

    ``tensors`` are whole, by megatron's names of linear layers: ``LAYER.lora_A`` ``[rank, in]`` and
    ``LAYER.lora_B`` ``[out, rank]`` (``decoder.layers.0.self_attention.linear_qkv.lora_A``). Each
    product is scaled by ``lora.scale``, whatever its rank is. Raises StepFailed for a tensor that
    holds numbers which are not finite.
    """
    written: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for layer in linear_layers(base.sizes):
        if f"{layer}{_PARTS[0]}" not in tensors:
            continue
        pair = [tensors[f"{layer}{part}"].detach().cpu() for part in _PARTS]
        for module, own in export_adapter(layer, *pair, base.sizes).items():
            ranks[module] = len(own[0])
            for part, tensor in zip(_PARTS, own, strict=True):
                written[f"{_PREFIX}{module}{part}.weight"] = tensor
    path.mkdir(parents=True, exist_ok=True)
    write_file(path / ADAPTER_WEIGHTS, written)
    config = write_adapter_config(ranks, lora)
    for name, content in ((ADAPTER_CONFIG, config), (BASE_FILE, base.model_dump())):
        text = json.dumps(content, indent=2) + "\n"
        (path / name).write_text(text, encoding="utf-8")
    shutil.copytree(tokenizer, path / TOKENIZER, dirs_exist_ok=True)


def read_lora(path: Path, sizes: ModelConfig | None = None) -> LoraFolder:
    """The adapter in a folder, exactly what peft would add to each layer.

    ``sizes`` are those of the model that it is for; None: those of its ``base.json``.

    Raises:
        InputError: with all that is wrong: the folder is none of peft's, its weights are pickled,
            it asks for something else than low-rank products, or it does not fit the model.
    """
    check_adapter_files(path)
    config, base = read_adapter_config(path), read_adapter_base(path)
    if sizes is None and base is not None:
        sizes = base.sizes
    if sizes is None:
        what = "the adapter does not say what sizes its base has"
        fix = "merge it into its base with convert/merge_lora, or give the base as model"
        raise InputError(Problem(where=str(path / BASE_FILE), what=what, fix=fix))
    folder = TensorFolder(path, ADAPTER_WEIGHTS)
    layers = {layer: hf_modules(layer, sizes) for layer in linear_layers(sizes)}
    owner = {module: layer for layer, modules in layers.items() for module in modules}
    shapes = {
        module: shape
        for layer in dict.fromkeys(owner[name] for name in _modules(folder) if name in owner)
        for module, shape in hf_shapes(layer, sizes).items()
    }
    raise_all(InputError, list(_find_misfits(folder, config, shapes)))
    adapters: dict[str, LayerAdapter] = {}
    for layer, modules in layers.items():
        parts = {
            name: _read_pair(folder, name, config)
            for name in modules
            if _keys(name)[0] in folder.shapes
        }
        if parts:
            adapters[layer] = import_adapter(layer, parts, sizes)
    return LoraFolder(adapters, config, base, _find_tokenizer(path))


def _read_pair(folder: TensorFolder, module: str, config: AdapterConfig) -> LayerAdapter:
    lora_A, lora_B = (folder.read(key) for key in _keys(module))
    return LayerAdapter(lora_A, lora_B, config.scale_of(module))


def _keys(module: str) -> tuple[str, str]:
    """The names of A and B of a module in the file."""
    first, second = (f"{_PREFIX}{module}{part}.weight" for part in _PARTS)
    return first, second


def _modules(folder: TensorFolder) -> list[str]:
    """Hugging Face's names of the modules that have a tensor in the file."""
    names = (name.removeprefix(_PREFIX).removesuffix(".weight") for name in folder.shapes)
    return list(dict.fromkeys(name.rpartition(".")[0] for name in names))


def _find_misfits(
    folder: TensorFolder, config: AdapterConfig, shapes: Mapping[str, tuple[int, int]]
) -> Iterator[Problem]:
    """Tensors that have no place in the model, or that peft would not load."""
    where = str(folder.path / ADAPTER_WEIGHTS)
    known = {key for name in shapes for key in _keys(name)}
    for name in sorted(set(folder.shapes) - known):
        what = "this tensor belongs to no linear layer of a model of these sizes"
        fix = "adapters of embeddings, of the head and of other models cannot be taken over"
        yield Problem(where=where, key=name, what=what, fix=fix)
    for name, (wide_out, wide_in) in shapes.items():
        pair = [folder.shapes.get(key) for key in _keys(name)]
        if pair == [None, None]:
            continue
        rank = config.rank_of(name)
        for key, got, expected in zip(
            _keys(name), pair, ((rank, wide_in), (wide_out, rank)), strict=True
        ):
            if got is None:
                yield Problem(where=where, key=key, what="a tensor is missing")
            elif got != expected:
                what = f"a tensor has another shape than {ADAPTER_CONFIG} and the base say"
                got_text, allowed = str(list(got)), str(list(expected))
                yield Problem(where=where, key=key, what=what, got=got_text, allowed=allowed)
        if not config.has(name):
            what = f"{ADAPTER_CONFIG} does not name this module, so that peft would not load it"
            targets = str(config.targets)[:200]
            yield Problem(where=where, key=name, what=what, allowed=targets)


def _find_tokenizer(path: Path) -> Path | None:
    """The folder of the tokenizer that came with an adapter, or None."""
    return next((each for each in (path / TOKENIZER, path) if _has_tokenizer(each)), None)


def _has_tokenizer(path: Path) -> bool:
    return (path / "tokenizer.json").is_file()
