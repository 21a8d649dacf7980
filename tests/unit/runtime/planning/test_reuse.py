"""What is decided about a run while other commands plan the same one."""

from __future__ import annotations

from typing import Any

from nemotron_style.runtime.planning.reuse import explain_new_run
from nemotron_style.runtime.run.folder import RunFolder


def test_a_run_that_another_command_has_just_planned_is_compared_with_others_only(
    mill: Any,
) -> None:
    plan, other = (mill.compile("mill/grow", *more).target.plan for more in ([], ["steps=9"]))
    RunFolder(plan.record_dir).reserve(plan)
    assert explain_new_run(plan, mill.store).reason == "first run of this step"
    RunFolder(other.record_dir).reserve(other)
    assert explain_new_run(plan, mill.store).reason.startswith(f"differs from {other.run_id}: ")
