"""The gradient of a global batch does not depend on how it is cut or over what it is divided."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nemotron_style.steps.blocks.checkpoint.model_checkpoint import WEIGHTS
from nemotron_style.steps.blocks.checkpoint.torch_dist import read_full
from nemotron_style.steps.blocks.loss import steerlm2
from nemotron_style.steps.blocks.model.parallel import Parallel
from nemotron_style.steps.sft.steerlm2.batch import Sizes, Table

SCRIPT = Path(__file__).with_name("steerlm2_gradient.py")
WHOLE_BATCH = Sizes(100, 100)


def load_script():
    spec = importlib.util.spec_from_file_location("steerlm2_gradient", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load_script()


def read(path):
    return dict(read_full(path / WEIGHTS))


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    target = tmp_path_factory.mktemp("whole")
    return script.gradient(Parallel(), WHOLE_BATCH, target), read(target)


def assert_same(figures, tensors, reference):
    expected_figures, expected = reference
    assert figures == pytest.approx(expected_figures, abs=1e-5)
    assert tensors.keys() == expected.keys()
    scale = max(tensor.abs().max() for tensor in expected.values())
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-6 * scale, rtol=0)


@pytest.mark.parametrize(
    "sizes",
    [Sizes(4, 4), Sizes(9, 1), Sizes(1, 1), Sizes(2, 3), Sizes(3, 100)],
    ids=lambda sizes: f"micro{sizes.micro_batch_size}-forward{sizes.forward_micro_batch_size}",
)
def test_gradient_does_not_depend_on_micro_batches(sizes, reference, tmp_path):
    figures = script.gradient(Parallel(), sizes, tmp_path)
    assert_same(figures, read(tmp_path), reference)


def test_table_agrees_with_the_arithmetic_of_single_groups():
    groups = script.groups()
    table = Table.of(groups, torch.device("cpu")).rows([3, 1])
    for place, number in enumerate([3, 1]):
        group = groups[number]
        numbers = (group.log_p_a, group.log_p_y, group.log_q)
        alone = steerlm2.target_weights(*(torch.tensor([row]) for row in numbers))
        torch.testing.assert_close(table.target[place], alone[0], atol=1e-5, rtol=0)
        assert table.token_counts[place].tolist() == [len(ids) for ids in group.responses_ids]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tensor", "pipeline", "micro", "forward"),
    [(1, 1, 8, 8), (2, 1, 8, 8), (1, 2, 4, 4), (1, 2, 3, 2)],
    ids=["data2", "tensor2", "pipeline2", "pipeline2-parts"],
)
def test_gradient_does_not_depend_on_processes(
    tensor, pipeline, micro, forward, reference, tmp_path
):
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT)]
    words = [str(word) for word in (tensor, pipeline, micro, forward, tmp_path)]
    subprocess.run(
        [sys.executable, "-m", *launch, *words],
        check=True,
        timeout=180,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert_same(figures, read(tmp_path), reference)
