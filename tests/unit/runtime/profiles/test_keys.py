"""What a plan says of settings that its executor does not keep."""

from __future__ import annotations

from typing import Any

import pytest

from nemotron_style.runtime.errors import ProfileError
from nemotron_style.runtime.planning.planner import compile_pipeline
from nemotron_style.runtime.planning.request import RunRequest
from nemotron_style.runtime.run.plan import Plan


def plan_grow(mill: Any, **profile: Any) -> Plan:
    plan = compile_pipeline(RunRequest("mill/grow"), context=mill.context(**profile)).target.plan
    assert isinstance(plan, Plan)
    return plan


def test_no_plan_is_made_with_a_limit_that_nobody_keeps(mill: Any) -> None:
    with pytest.raises(ProfileError) as caught:
        plan_grow(mill, time="01:00:00", memory="8G", gpus_per_node=0)
    assert [problem.key for problem in caught.value.problems] == ["memory", "time"]
    assert plan_grow(mill, max_requeues=0).site == {}


def test_mounts_of_a_job_without_an_image_are_told_to_have_no_effect(mill: Any) -> None:
    (note,) = plan_grow(mill, mounts=("/a:/b",)).notes
    assert note == "mounts: without effect, since there is no image to mount them into"
    assert plan_grow(mill, mounts=("/a:/a",)).notes == ()
    assert plan_grow(mill, mounts=("/a:/b",), image="x:1").notes == ()
