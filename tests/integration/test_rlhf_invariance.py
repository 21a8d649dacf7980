"""The loss and gradients of rl/rlhf do not depend on micro-batches and processes."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

import rlhf_job as job
from nemotron_style.steps.blocks.model import parallel
from ranks import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ranks")]


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


@pytest.mark.parametrize("size", job.PASSES)
@pytest.mark.parametrize("name", job.OPTIONS)
def test_the_gradient_is_that_of_one_pass_in_one_process(one, processes, name, size):
    whole, parts = load_file(one / "tensors"), load_file(processes / "tensors")
    start = f"{name}/16/"
    keys = [key.removeprefix(start) for key in whole if key.startswith(start)]
    expected = torch.cat([whole[f"{start}{key}"].flatten() for key in keys])
    found = torch.cat([parts[f"{name}/{size}/{key}"].flatten() for key in keys])
    assert expected.norm() > 0
    assert float((found - expected).norm() / expected.norm()) < 1e-6


@pytest.mark.parametrize("name", job.OPTIONS)
def test_loss_and_metrics_are_those_of_one_pass_in_one_process(one, processes, name):
    expected = facts(one)["metrics"][name][-1]
    for metrics in facts(processes)["metrics"][name]:
        assert metrics == pytest.approx(expected, rel=1e-5, abs=1e-6)
        assert metrics["loss"] == pytest.approx(expected["loss"], rel=1e-6, abs=1e-7)


def test_log_probs_are_the_same_everywhere(one, processes):
    expected = facts(one)["logprobs"][-1]
    for logprobs in facts(processes)["logprobs"]:
        assert logprobs == pytest.approx(expected, rel=1e-5)


def test_samples_that_the_sampler_saw_otherwise_are_masked_alike(one, processes):
    masks = facts(one)["masks"]
    assert facts(processes)["masks"] == masks
    assert 0 < sum(masks) < sum(sample.mask for sample in job.samples())


def test_every_process_gets_what_rank_zero_gets(one, two):
    shared = [[0, "first"], "0: gone"]
    assert facts(one)["shared"] == [shared]
    for division in job.DIVISIONS:
        assert facts(two / division)["shared"] == [shared, shared]
