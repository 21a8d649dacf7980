"""A reward model's gradients, losses and predictions do not depend on how the work is divided."""

import json

import pytest
import torch
from safetensors.torch import load_file

import regression_job as job
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import save_model
from nemotron_style.steps.blocks.model import parallel
from nemotron_style.steps.blocks.model.language_model import build_model
from ranks import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ranks")]

SIZES = (1, 3, 16)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A checkpoint with tied embeddings, which the head does away with."""
    path = tmp_path_factory.mktemp("start")
    parallel.initialize(seed=1)
    words = path / "words"
    words.mkdir()
    (words / "tokenizer.json").write_text("{}")
    save_model(build_model(job.SIZES, seed=11), path / "model", config=job.SIZES, tokenizer=words)
    return path / "model"


@pytest.fixture(scope="module")
def one(start, tmp_path_factory):
    """What this process computes alone."""
    out = tmp_path_factory.mktemp("one")
    job.measure(start, out)
    return out


@pytest.fixture(scope="module")
def two(start, tmp_path_factory):
    """The folder in which two processes left their results, one folder per division."""
    out = tmp_path_factory.mktemp("two")
    run_ranks(job.main, start, out, log=out / "log.txt")
    return out


def facts(folder):
    return json.loads((folder / "facts.json").read_text())


def difference(expected, found, size):
    """Of the whole gradient, relative to its norm."""
    names = [name.removeprefix("16/") for name in expected if name.startswith("16/")]
    assert "score.weight" in names
    whole = torch.cat([expected[f"16/{name}"].flatten() for name in names])
    parts = torch.cat([found[f"{size}/{name}"].flatten() for name in names])
    return float((whole - parts).norm() / whole.norm())


@pytest.mark.parametrize("size", SIZES)
def test_micro_batches_do_not_change_the_gradient(one, size):
    tensors = load_file(one / "tensors")
    assert difference(tensors, tensors, size) < 1e-6
    assert facts(one)["losses"][str(size)] == pytest.approx(facts(one)["losses"]["16"], rel=1e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("division", job.DIVISIONS)
def test_gradients_are_those_of_one_process(one, two, division, size):
    expected, found = load_file(one / "tensors"), load_file(two / division / "tensors")
    assert difference(expected, found, size) < 1e-6
    losses = facts(two / division)["losses"][str(size)]
    assert losses == pytest.approx(facts(one)["losses"]["16"], rel=1e-6)


@pytest.mark.parametrize("division", job.DIVISIONS)
def test_predictions_are_those_of_one_process(one, two, division):
    expected = load_file(one / "tensors")["outputs"]
    found = load_file(two / division / "tensors")["outputs"]
    assert (expected - found).abs().max() < 1e-5


@pytest.mark.parametrize("division", job.DIVISIONS)
def test_norms_count_every_weight_once(one, two, division):
    assert facts(two / division)["norms"] == pytest.approx(facts(one)["norms"], rel=1e-4)


@pytest.mark.parametrize("division", job.DIVISIONS)
def test_a_resumed_run_is_bit_for_bit_the_same(two, division):
    found = facts(two / division)
    assert found["resumed"] == found["norms"][1:]
    assert found["resumed_last"] == found["last"]
