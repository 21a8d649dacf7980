"""A state that was saved with one division of the model goes on with every other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import layout_job as job
import rlhf_world
import spread_job
from nemotron_style.steps.blocks.model import parallel
from ranks import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ranks")]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of all runs: alone, of two processes, and alone again."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("layouts")
    job.make_inputs(root)
    with rlhf_world.Judge().serve() as judge:
        job.run_alone(root, judge.url)
        run_ranks(job.main, root, judge.url, log=root / "log.txt")
        parallel.initialize(seed=1)
        job.end_alone(root, judge.url)
    return root


@pytest.mark.parametrize(
    ("step", "first", "then"),
    [(step, *pair) for step, case in job.CASES.items() for pair in case.pairs],
)
def test_a_run_goes_on_with_another_division(root: Path, step: str, first: str, then: str) -> None:
    expected = job.figures(root, step, job.ONE)
    assert job.figures(root, step, first, then) == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("step", job.CASES)
def test_a_division_changes_no_loss(root: Path, step: str) -> None:
    expected = job.figures(root, step, job.ONE)
    for name in {first for first, _ in job.CASES[step].pairs}:
        assert job.figures(root, step, name) == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_optimizer_state_that_data_ranks_share_goes_on_with_another_division(
    tmp_path: Path,
) -> None:
    run_ranks(spread_job.main, tmp_path, log=tmp_path / "log.txt")
    norms = json.loads((tmp_path / "norms.json").read_text())
    parallel.initialize(seed=1)
    with spread_job.spread_state():
        norms |= {f"{saved}-one": spread_job.load(tmp_path / saved) for saved in spread_job.SAVED}
    assert len(norms) == 8
    expected = norms["data"]
    assert norms == pytest.approx(dict.fromkeys(norms, expected), rel=1e-3)  # in bfloat16
