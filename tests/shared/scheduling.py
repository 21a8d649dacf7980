"""How the workers of ``pytest -n 3`` share the test files."""

from __future__ import annotations

from typing import Any

from xdist.scheduler import LoadScopeScheduling

from order import unit_of


class FileScheduling(LoadScopeScheduling):
    """Gives a free worker the next file, in the order of collection."""

    def __init__(self, config: Any, log: Any = None) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False  # else by the number of tests

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)
