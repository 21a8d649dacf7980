"""The short form of ``make faults``: a store is attacked, and no promise is broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from attacks import PARTS, SMALL, attack, count_broken


@pytest.mark.parametrize(
    "part", [part for part in PARTS if part not in ("bucket-publish", "bucket-kill")]
)
def test_no_promise_is_broken(tmp_path: Path, part: str) -> None:
    for _part, disk, figures in attack(tmp_path, SMALL, [part]):
        assert count_broken(figures) == 0, (disk, figures)


def test_a_broken_promise_would_be_counted() -> None:
    assert count_broken({"kills": 3, "torn": 1, "lost": 0, "wrong": ["model:v1 is torn"]}) == 2
