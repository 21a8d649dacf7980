"""Several processes with a card each: gradients and updates are those of the CPU."""

from __future__ import annotations

from typing import Any

import pytest

import card_job as job
from nemotron_style.runtime.atomic import read_json
from ranks import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ranks")]


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("card")
    run_ranks(job.main, out, log=out / "log.txt")
    return read_json(out / "figures.json") or {}


@pytest.mark.parametrize("division", job.DIVISIONS)
def test_the_gradients_of_a_division_are_those_of_the_cpu(figures, division: str) -> None:
    assert figures["gaps"][division] < 1e-5


@pytest.mark.parametrize("optimizer", ["whole", "distributed"])
def test_an_optimizer_that_data_ranks_share_makes_the_updates_of_the_cpu(
    figures, optimizer
) -> None:
    updates = figures["updates"]
    assert updates[optimizer] == pytest.approx(updates["cpu"], rel=1e-5)
    assert updates["cpu"][2] < updates["cpu"][0]
