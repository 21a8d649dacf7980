"""What is recomputed, packed or divided along the sequence gives the gradients of what is not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import activation_job as job
from nemotron_style.steps.blocks.model import parallel
from ranks import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ranks")]

EVERY = [(division, kept) for division, ways in job.DIVISIONS.items() for kept in ways]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes left their gradients."""
    out = tmp_path_factory.mktemp("two")
    run_ranks(job.main, out, log=out / "log.txt")
    return out


@pytest.fixture(scope="module")
def one() -> dict[str, dict[str, Tensor]]:
    """The same from this process, with everything kept; recomputed too."""
    torch.set_num_threads(1)
    parallel.initialize(seed=1)
    kept = {"": job.KEEP_ALL, " each": job.EACH, " first": job.FIRST, " pairs": job.PAIRS}
    return {
        f"{'lora' if adapted else 'whole'}{name}": job.gradients(way, adapted=adapted)
        for name, way in kept.items()
        for adapted in (False, True)
    }


def gap(found: dict[str, Tensor], expected: dict[str, Tensor], kind: str) -> float:
    names = [name for name in expected if name.startswith(kind) and not name.endswith("/loss")]
    assert names
    whole, other = (torch.cat([each[n].flatten() for n in names]) for each in (expected, found))
    return ((whole - other).norm() / whole.norm()).item()


@pytest.mark.parametrize("way", ["each", "first", "pairs"])
@pytest.mark.parametrize("trained", ["whole", "lora"])
def test_recomputed_gradients_are_the_same_bits(one, trained: str, way: str) -> None:
    """With the dropout of adapters too, whose random numbers are drawn again."""
    for name, expected in one[trained].items():
        assert torch.equal(one[f"{trained} {way}"][name], expected), name


@pytest.mark.parametrize(("division", "kept"), EVERY)
def test_gradients_and_losses_are_those_of_one_process(one, two, division: str, kept: str) -> None:
    found, expected = load_file(two / f"{division} {kept}"), one["whole"]
    for kind in ("padded", "packed", "shared"):
        assert gap(found, expected, kind) < 1e-6, kind
        loss = expected[f"{kind}/loss"].item()
        assert found[f"{kind}/loss"].item() == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize(
    ("division", "kept", "base"),
    [("tensor", "first", "all"), ("tensor", "both", "divided"), ("pipeline", "pairs", "all")],
)
def test_what_a_division_recomputes_is_the_same_bits(
    two, division: str, kept: str, base: str
) -> None:
    found = load_file(two / f"{division} {kept}")
    for name, expected in load_file(two / f"{division} {base}").items():
        assert torch.equal(found[name], expected), name


def test_packed_rows_have_the_loss_and_gradients_of_padded_ones(one) -> None:
    padded, packed = (
        {name.split("/", 1)[1]: value for name, value in one["whole"].items() if kind in name}
        for kind in ("padded/", "packed/")
    )
    assert gap(packed, padded, "") < 1e-6
    assert packed["loss"].item() == pytest.approx(padded["loss"].item(), rel=1e-6)


@pytest.mark.parametrize("kept", ["all", "first", "divided", "both"])
def test_adapters_of_tensor_ranks_drop_and_learn_what_one_process_does(one, two, kept) -> None:
    found = load_file(two / f"tensor {kept} lora")
    assert gap(found, one["lora"], "packed") < 1e-5
