"""A store that the command line finds."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemotron_style.runtime.store.store import Store


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("NEMOTRON_STYLE_HOME", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    return Store(tmp_path / "store")
