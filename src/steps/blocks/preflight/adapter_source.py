"""An adapter that is there already: what is wrong with it, and whether it is one of this base."""

from __future__ import annotations

from pathlib import Path

from nemotron_style.runtime.errors import ArtifactError, InputError, Problem
from nemotron_style.runtime.store.record import Artifact, load_artifact
from nemotron_style.steps.blocks.preflight.model_source import look_at_model
from nemotron_style.steps.blocks.settings.adapter_config import (
    check_adapter_files,
    read_adapter_base,
    read_adapter_config,
)
from nemotron_style.steps.blocks.settings.model_config import ModelConfig

FOREIGN = "adapter: it does not say which weights it was trained on; its shapes are compared alone"


def check_adapter(path: Path, model: Path | None) -> tuple[tuple[str, ...], list[Problem]]:
    """Notes on the adapter in a folder, and all that is wrong with it, as its small files say.

    ``model`` is the folder of its base, where that is there already; it may be one of Hugging Face
    that will be converted first, whose digest is not known yet.
    """
    try:
        check_adapter_files(path)
        config, base = read_adapter_config(path), read_adapter_base(path)
    except InputError as error:
        return (), list(error.problems)
    note = f"adapter: rank {config.rank}, alpha {config.alpha:g}, of {path}"
    notes = (note,) if base else (note, FOREIGN)
    if model is None:
        return notes, []
    artifact = _recorded(model)
    return notes, check_adapter_base(
        path,
        digest=artifact and artifact.facts.get("weights_digest"),
        sizes=look_at_model(model).sizes,
        model=artifact.ref if artifact else str(model),
    )


def _recorded(path: Path) -> Artifact | None:
    """The artifact in a folder; None for one that is no artifact of a store."""
    try:
        return load_artifact(path)
    except (FileNotFoundError, ArtifactError):
        return None


def check_adapter_base(
    adapter: Path, *, digest: str | None, sizes: ModelConfig | None, model: str
) -> list[Problem]:
    """Whether the adapter in a folder was trained on the base ``model``; no problems where it was.

    ``digest`` is that of the base's weights, ``sizes`` its sizes; None where they are not known
    yet. An adapter from elsewhere says nothing of its base: of that, shapes alone can be checked.
    Raises InputError for a ``base.json`` that cannot be read.
    """
    base = read_adapter_base(adapter)
    if base is None:
        return []
    trained = f"the adapter was trained on {base.ref or 'another model'}"
    if digest is not None and digest != base.weights_digest:
        return [
            Problem(
                where=str(adapter),
                key="weights_digest",
                what=f"the adapter belongs to another base than {model}",
                got=f"a base with weights {digest}",
                allowed=base.weights_digest,
                fix=f"give the base that it was trained on: {base.ref}" if base.ref else trained,
            )
        ]
    if digest is None and sizes is not None and sizes != base.sizes:
        mine, own = sizes.model_dump(), base.sizes.model_dump()
        keys = [name for name in mine | own if mine.get(name) != own.get(name)]
        return [
            Problem(
                where=str(adapter),
                key=f"sizes.{key}",
                what=f"{trained}, which has other sizes than {model}",
                got=str(mine.get(key)),
                allowed=str(own.get(key)),
            )
            for key in keys
        ]
    return []
