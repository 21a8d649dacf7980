"""Two processes give what one gives: gradients, scores, updates, digests, files."""

import json

import pytest
import torch
from safetensors.torch import load_file

import training_job as job
from listening import write_addresses
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import load_model, weights_digest
from nemotron_style.steps.blocks.model import parallel
from ranks import CONTEXT, run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ranks")]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder in which two processes left their results, one folder per division."""
    out = tmp_path_factory.mktemp("two")
    run_ranks(job.main, out, log=out / "log.txt")
    return out


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The same from this process."""
    out = tmp_path_factory.mktemp("one")
    parallel.initialize(seed=1)
    for name, config in job.ALONE.items():
        (out / name).mkdir()
        job.measure(config, out / name, sizes=(8,), lora=name == "lora")
    return out


def facts(folder):
    return json.loads((folder / "facts.json").read_text())


def alone(one, division):
    name = division.split()[0]
    return one / (name if name in job.ALONE else "data")


CASES = [(division, size) for division in job.DIVISIONS for size in job.sizes_of(division)]


@pytest.mark.parametrize(("division", "size"), CASES)
def test_gradients_are_those_of_one_process(one, two, division, size):
    """Size 8 is one micro-batch, so with two data ranks one of them has none."""
    expected = load_file(alone(one, division) / "tensors")
    found = load_file(two / division / "tensors")
    names = [name for name in expected if name.startswith("8/")]
    assert names
    whole = torch.cat([expected[name].flatten() for name in names])
    parts = torch.cat([found[f"{size}/{name[2:]}"].flatten() for name in names])
    rounding = 2e-6 if division.startswith("lora") else 1e-6  # through two products more
    assert (whole - parts).norm() / whole.norm() < rounding


@pytest.mark.parametrize("division", job.DIVISIONS)
def test_scores_are_those_of_one_process(one, two, division):
    expected = load_file(alone(one, division) / "tensors")
    found = load_file(two / division / "tensors")
    assert (expected["scores"] - found["scores"]).abs().max() < 2e-6
    # whoever samples from a divided model has all its weights, with those of its adapters
    assert torch.equal(expected["sampled from"], found["sampled from"])


@pytest.mark.parametrize("division", job.DIVISIONS)
def test_first_weights_do_not_depend_on_the_division(one, two, division):
    assert facts(two / division)["first"] == facts(alone(one, division))["first"]


@pytest.mark.parametrize("division", job.DIVISIONS)
def test_norms_count_every_weight_once(one, two, division):
    expected = facts(alone(one, division))["norms"]
    assert facts(two / division)["norms"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("division", job.DIVISIONS)
def test_a_resumed_run_is_bit_for_bit_the_same(two, division):
    found = facts(two / division)
    assert found["resumed"] == found["norms"][1:]
    assert found["resumed_last"] == found["last"]


@pytest.mark.parametrize("division", job.DIVISIONS)
def test_losses_of_five_updates_are_those_of_one_process(one, two, division):
    expected = facts(alone(one, division))["losses"]
    assert expected[-1] < expected[0] - 0.05
    # float32 has steps of 5e-7 at a loss of 4: so these are some steps apart after five updates
    assert facts(two / division)["losses"] == pytest.approx(expected, abs=4e-6)


@pytest.mark.parametrize("division", job.DIVISIONS)
def test_one_process_reads_what_two_wrote(one, two, division):
    model, config = load_model(two / division / "model")
    assert config == job.DIVISIONS[division][0]
    digest = facts(two / division)["model"]
    assert weights_digest(two / division / "model") == weights_digest(model) == digest


def hosts(path):
    return {host for host, _ in json.loads(path.read_text())}


def test_a_lone_process_listens_on_loopback_alone(tmp_path):
    """Whatever interface the shell says, as that of a cluster does."""
    process = CONTEXT.Process(target=write_addresses, args=(tmp_path,))
    process.start()
    process.join(300)
    assert hosts(tmp_path / "lone.json") <= {"127.0.0.1"}


def test_the_processes_of_one_machine_listen_on_loopback_alone(tmp_path):
    """But for the store by which they find each other, which whoever starts them holds."""
    run_ranks(write_addresses, tmp_path, log=tmp_path / "log.txt")
    assert hosts(tmp_path / "1.json") == {"127.0.0.1"}
    assert hosts(tmp_path / "0.json") <= {"127.0.0.1", "0.0.0.0", "::"}
