"""Every family, divided over two processes, is what one process and transformers have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import family_job as job
from family_models import VARIANTS, write_model
from nemotron_style.steps.blocks.model import parallel
from ranks import run_ranks

# Those that differ in what is divided; the others differ from one of them in a number.
SAME_DIVISION = ("llama 3", "llama linear", "smollm 2", "qwen 2.5 yarn", "qwen 3 window")
SAME_DIVISION += ("phi 4", "gemma 3 capped")
DIVIDED = [name for name in VARIANTS if name not in SAME_DIVISION]

pytest.importorskip("transformers")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ranks")]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for every variant of every family."""
    folders = {name: tmp_path_factory.mktemp("hf") for name in DIVIDED}
    for name, folder in folders.items():
        write_model(name, folder, torch.tensor([[3, 4]]))
    return folders


@pytest.fixture(scope="module")
def two(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes left what they computed; one job for all families."""
    out = tmp_path_factory.mktemp("two")
    run_ranks(job.main, models, out, log=out / "log.txt")
    return out


@pytest.fixture(scope="module")
def one(models: dict[str, Path]) -> dict[str, tuple[dict[str, Tensor], dict[str, Any]]]:
    """The same from this process."""
    parallel.initialize(seed=1)
    return {name: job.measure(folder) for name, folder in models.items()}


@pytest.mark.parametrize("division", job.DIVISIONS)
@pytest.mark.parametrize("variant", DIVIDED)
def test_scores_gradients_and_weights_do_not_depend_on_the_division(
    models: dict[str, Path],
    one: dict[str, tuple[dict[str, Tensor], dict[str, Any]]],
    two: Path,
    variant: str,
    division: str,
) -> None:
    expected, facts = one[variant]
    found = load_file(two / division / variant / "tensors")
    assert set(found) == set(expected)
    assert (found["scores"] - expected["scores"]).abs().max() < 1e-5
    assert torch.equal(found["sampled from"], expected["sampled from"])
    for name in (name for name in expected if name.startswith("gradient/")):
        gap = (found[name] - expected[name]).norm()
        assert expected[name].norm() > 0, f"{name}: nothing flows to it"
        assert gap <= 1e-5 * max(1.0, float(expected[name].norm())), name
    norm = json.loads((two / division / variant / "facts.json").read_text())["norm"]
    assert norm == pytest.approx(facts["norm"], rel=1e-5)
    stored = load_file(models[variant] / "model.safetensors")
    for name, whole in stored.items():
        assert torch.equal(found[f"weight/{name}"], whole), name
