"""What rs/actor samples, scores and trains on does not depend on passes and processes."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

import rs_job as job
from nemotron_style.steps.blocks.model import parallel
from ranks import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ranks")]

GOLDEN = {
    "long": 2.980198,
    "one prompt": 2.980198,
    "padding, eos 0": 2.454545,
    "padding, eos 2": 2.454545,
}
SHARES = {"long": (10 / 1010, 1000 / 1010), "padding, eos 0": (3 / 11, 8 / 11)}


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """What this process computes alone."""
    out = tmp_path_factory.mktemp("one")
    parallel.initialize(seed=1)
    job.measure(out)
    return out


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two processes compute together."""
    out = tmp_path_factory.mktemp("two")
    run_ranks(job.main, out, log=out / "log.txt")
    return out


@pytest.fixture(params=["one", *job.DIVISIONS])
def processes(request):
    if request.param == "one":
        return request.getfixturevalue("one")
    return request.getfixturevalue("two") / request.param


def facts(folder):
    return json.loads((folder / "facts.json").read_text())


@pytest.mark.parametrize("copies", ["one", "two"])
@pytest.mark.parametrize("case", GOLDEN)
def test_the_loss_is_a_mean_over_all_tokens_of_the_batch(one, two, copies, case):
    values = facts(one if copies == "one" else two / "data")["golden"][case]
    assert len(values) == len(job.PASSES)
    assert values == pytest.approx([GOLDEN[case]] * len(values), abs=1e-6)


@pytest.mark.parametrize("copies", ["one", "two"])
@pytest.mark.parametrize("case", SHARES)
def test_every_token_has_the_same_share_of_the_gradient(one, two, copies, case):
    values = facts(one if copies == "one" else two / "data")["golden"][f"{case}: gradient"]
    assert values == pytest.approx(SHARES[case], rel=1e-5)


@pytest.mark.parametrize("size", job.PASSES)
def test_loss_and_gradient_are_those_of_one_pass_in_one_process(one, processes, size):
    whole, parts = load_file(one / "tensors"), load_file(processes / "tensors")
    names = [name.removeprefix("16/") for name in whole if name.startswith("16/")]
    expected = torch.cat([whole[f"16/{name}"].flatten() for name in names])
    found = torch.cat([parts[f"{size}/{name}"].flatten() for name in names])
    assert float((found - expected).norm() / expected.norm()) < 1e-6
    losses = facts(processes)["losses"]
    assert losses == pytest.approx([facts(one)["losses"][-1]] * len(losses), rel=1e-6)


@pytest.mark.parametrize("division", job.DIVISIONS)
def test_two_processes_draw_what_one_draws(one, two, division):
    alone, together = facts(one), facts(two / division)
    assert together["tokens"] == alone["tokens"]
    assert together["rewards"] == alone["rewards"]
    assert together["kl"] == pytest.approx(alone["kl"], rel=1e-5)


def test_every_process_hears_that_the_reward_model_is_gone(one, two):
    assert facts(one)["failed ranks"] == 1
    assert [facts(two / division)["failed ranks"] for division in job.DIVISIONS] == [2, 2, 2]


def test_a_prompt_that_comes_twice_is_two_groups(one):
    tokens = facts(one)["tokens"]
    assert len(tokens) == 7
    assert tokens[2] != tokens[6]


def test_the_distance_of_a_model_from_itself_is_nought(processes):
    values = facts(processes)
    assert values["no kl"] == 0.0
    assert values["kl"] == pytest.approx([values["kl"][0]] * len(values["kl"]), rel=1e-5)
    assert values["kl"][0] > 0
