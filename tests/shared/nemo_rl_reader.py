"""NeMo-RL's own code reads configs: ``python nemo_rl_reader.py SOURCE CONFIG...``.

A program of its own, for an interpreter that has the imports of NeMo-RL. It prints one JSON object:
what is wrong with each config, by its path.
"""

from __future__ import annotations

import json
import sys
import typing
from typing import Any

import typing_extensions

# pydantic wants this one below Python 3.12, where NeMo-RL's classes take the other.
typing.TypedDict = typing_extensions.TypedDict  # type: ignore[assignment]


def main(source: str, paths: list[str]) -> dict[str, list[str]]:
    """The places in each config that NeMo-RL's ``MasterConfig`` refuses."""
    sys.path.insert(0, source)
    from nemo_rl.algorithms.grpo import MasterConfig
    from nemo_rl.utils import config as loader
    from omegaconf import OmegaConf
    from pydantic import TypeAdapter, ValidationError

    getattr(loader, "register_omegaconf_resolvers", lambda: None)()
    refused: dict[str, list[str]] = {}
    for path in paths:
        values: Any = OmegaConf.to_container(loader.load_config(path), resolve=True)
        try:
            TypeAdapter(MasterConfig).validate_python(values)
            refused[path] = []
        except ValidationError as error:
            refused[path] = [".".join(map(str, each["loc"])) for each in error.errors()]
    return refused


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2:])))
