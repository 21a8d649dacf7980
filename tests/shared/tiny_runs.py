"""Stores of tiny runs as they were made, without weights and data: records, results, runs' folders.

``rl/rlhf -c tiny`` with an evaluation by ``eval/arena``, ``sft/steerlm2 -c tiny`` with one by
``eval/steerability``. What this version says of them is what it says of runs that people have.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

from nemotron_style.runtime.store.store import Store

GOLDEN = Path(__file__).parents[1] / "golden" / "report"
MODELS = {"rlhf": "rl-rlhf-tiny:v2", "steerlm2": "sft-steerlm2-tiny:v2"}


def unpack_store(name: str, folder: Path) -> Store:
    """The store of a tiny run, in ``folder``."""
    with tarfile.open(GOLDEN / f"{name}-tiny.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return Store(folder / name)
