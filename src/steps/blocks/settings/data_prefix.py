"""``model.data.data_prefix``: the files of data under NeMo-Aligner's names."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator

from nemotron_style.runtime.config.model import Section, unused


def one_file(value: Any) -> Any:
    """The file of a list of one, as NeMo-Aligner's users write it: ``[/data/train.jsonl]``."""
    if not isinstance(value, list):
        return value
    if len(value) != 1:
        raise ValueError(
            f"an input is one file or one folder of shards, and not {len(value)} files: put them "
            "into a folder, under names that differ in their numbers alone"
        )
    return value[0]


OneFile = Annotated[str | None, BeforeValidator(one_file)]


class DataPrefix(Section):
    """``model.data.data_prefix``: the files; without ``validation`` there is none."""

    train: OneFile = None
    validation: OneFile = None
    test: OneFile = unused(None)


def move_prefix(data: Any) -> Any:
    """``model.data`` with the files of ``data_prefix`` in ``train_ds`` and ``validation_ds``.

    Raises ValueError where both name a file, and not the same.
    """
    if not isinstance(data, dict) or not isinstance(data.get("data_prefix"), dict):
        return data
    prefix = DataPrefix.model_validate(data["data_prefix"])
    moved = {**data, "data_prefix": {}}
    for section, file in (("train_ds", prefix.train), ("validation_ds", prefix.validation)):
        if file is None:
            continue
        table = dict(data.get(section) or {})
        if table.get("file_path") not in (None, file):
            raise ValueError(f"data_prefix and {section}.file_path name two files; give one")
        moved[section] = table | {"file_path": file}
    return moved
