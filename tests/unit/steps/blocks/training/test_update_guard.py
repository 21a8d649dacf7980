"""Updates that are not finite: refused with step and rank, or skipped where that is allowed."""

import math

import pytest
from torch import nn

from nemotron_style.runtime.errors import StepFailed
from nemotron_style.steps.blocks.training import update_guard
from nemotron_style.steps.blocks.training.update_guard import UpdateGuard

FINE = {"loss": 1.0, "grad_norm": 2.0}
BAD = [
    {"loss": math.nan, "grad_norm": 2.0},
    {"loss": 1.0, "grad_norm": math.inf},
    {"loss": -math.inf, "grad_norm": math.nan},
]


@pytest.fixture(autouse=True)
def _two_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other of two ranks is rank 1, whose micro-batches had the NaN."""
    monkeypatch.setattr(update_guard, "gather", lambda own: [own, 2])


@pytest.mark.parametrize("numbers", BAD)
def test_the_update_is_refused_with_step_and_rank(numbers):
    guard = UpdateGuard(nn.Module())
    assert guard.allows(step=6, **FINE)
    with pytest.raises(StepFailed, match=r"step 7: .*not applied.*on rank 1;"):
        guard.allows(step=7, **numbers)


def test_so_many_in_a_row_are_skipped_and_counted(capsys):
    guard = UpdateGuard(nn.Module(), most_in_row=2)
    allowed = [guard.allows(step=n, **(BAD[0] if n in (2, 3, 5) else FINE)) for n in range(1, 7)]
    assert allowed == [True, False, False, True, False, True]
    assert guard.stored() == {"in_row": 0, "skipped": 3}
    assert "step 3: the update is not finite and was skipped" in capsys.readouterr().out
    for step in (7, 8):
        assert not guard.allows(step=step, **BAD[1])
    with pytest.raises(StepFailed, match="after 2 skipped in a row"):
        guard.allows(step=9, **BAD[1])


def test_a_continued_run_counts_on():
    guard = UpdateGuard(nn.Module(), most_in_row=1)
    guard.load({"in_row": 1, "skipped": 4})
    with pytest.raises(StepFailed):
        guard.allows(step=3, **BAD[0])
    guard.load({})  # a state of an earlier version
    assert guard.skipped == 0
