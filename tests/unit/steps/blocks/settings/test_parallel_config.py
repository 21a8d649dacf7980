"""What is kept of activations must fit how the model is divided."""

from __future__ import annotations

import pytest

from nemotron_style.steps.blocks.settings.parallel_config import ALIGNER_KEYS, Activations


def told(way: Activations, *, tensor: int = 1, layers: int | None = 6) -> str:
    return " ".join(map(str, way.find_problems(tensor=tensor, layers=layers, keys=ALIGNER_KEYS)))


@pytest.mark.parametrize(
    ("way", "says"),
    [
        (Activations(True), "tensor parallel size of 1"),
        (Activations(False, "uniform", 4), "divides 6"),
        (Activations(False, "block", 7), "1 to 6"),
    ],
)
def test_what_does_not_fit_is_said_with_both_numbers(way: Activations, says: str) -> None:
    assert says in told(way)


def test_what_fits_is_taken() -> None:
    for way in (Activations(), Activations(False, "uniform", 3), Activations(False, "block", 6)):
        assert told(way) == ""
    assert told(Activations(True, "uniform", 2), tensor=2) == ""
    assert told(Activations(False, "uniform", 4), layers=None) == ""


def test_how_many_layers_are_computed_again() -> None:
    assert Activations().recomputed(6) == 0
    assert Activations(False, "uniform", 2).recomputed(6) == 6
    assert Activations(False, "block", 2).recomputed(6) == 2
