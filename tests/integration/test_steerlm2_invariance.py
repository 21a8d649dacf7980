"""The gradient of a global batch does not depend on how it is cut or over what it is divided."""

from __future__ import annotations

import json

import pytest
import torch

import steerlm2_job as job
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import WEIGHTS
from nemotron_style.steps.blocks.checkpoint.torch_dist_stream import read_full
from nemotron_style.steps.blocks.loss import steerlm2
from nemotron_style.steps.blocks.model.parallel import Parallel
from nemotron_style.steps.sft.steerlm2.batch import Batch
from ranks import run_ranks

pytestmark = pytest.mark.xdist_group("ranks")
WHOLE_BATCH = job.sizes_of(100, 100)


def read(path):
    return dict(read_full(path / WEIGHTS))


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    target = tmp_path_factory.mktemp("whole")
    return job.gradient(Parallel(), WHOLE_BATCH, target), read(target)


def assert_same(figures, tensors, reference):
    expected_figures, expected = reference
    assert figures == pytest.approx(expected_figures, abs=1e-5)
    assert tensors.keys() == expected.keys()
    scale = max(tensor.abs().max() for tensor in expected.values())
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-6 * scale, rtol=0)


@pytest.mark.parametrize(
    "sizes",
    [
        job.sizes_of(4, 4),
        job.sizes_of(9, 1),
        job.sizes_of(1, 1),
        job.sizes_of(2, 3),
        job.sizes_of(3, 100),
    ],
    ids=lambda sizes: f"micro{sizes.micro_batch_size}-forward{sizes.forward_micro_batch_size}",
)
def test_gradient_does_not_depend_on_micro_batches(sizes, reference, tmp_path):
    figures = job.gradient(Parallel(), sizes, tmp_path)
    assert_same(figures, read(tmp_path), reference)


def test_a_batch_agrees_with_the_arithmetic_of_single_groups():
    groups = job.groups()
    batch = Batch.of(groups).take([3, 1])
    for place, number in enumerate([3, 1]):
        group = groups[number]
        numbers = (group.log_p_a, group.log_p_y, group.log_q)
        alone = steerlm2.target_weights(*(torch.tensor([row]) for row in numbers))
        torch.testing.assert_close(batch.w_PG[place], alone[0], atol=1e-5, rtol=0)
        assert batch.tokens_PG[place].tolist() == [len(ids) for ids in group.responses_ids]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder in which two processes left their results, one folder per division."""
    out = tmp_path_factory.mktemp("two")
    run_ranks(job.main, out, log=out / "log.txt")
    return out


@pytest.mark.slow
@pytest.mark.parametrize("division", job.DIVISIONS)
def test_gradient_does_not_depend_on_processes(division, reference, two):
    figures = json.loads((two / division / "figures.json").read_text())
    assert_same(figures, read(two / division), reference)
