"""What is decided about a run while other commands plan the same one."""

from __future__ import annotations

from typing import Any

from nemotron_style.runtime import atomic
from nemotron_style.runtime.planning.reuse import explain_new_run
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.store.record import Producer
from nemotron_style.runtime.store.removal import select


def test_a_run_that_another_command_has_just_planned_is_compared_with_others_only(
    mill: Any,
) -> None:
    plan, other = (mill.compile("mill/grow", *more).target.plan for more in ([], ["steps=9"]))
    RunFolder(plan.record_dir).reserve(plan)
    assert explain_new_run(plan, mill.store).reason == "first run of this step"
    RunFolder(other.record_dir).reserve(other)
    assert explain_new_run(plan, mill.store).reason.startswith(f"differs from {other.run_id}: ")


def test_another_config_does_not_go_on_from_a_checkpoint_and_says_so(mill: Any) -> None:
    plan, other = (mill.compile("mill/grow", *more).target.plan for more in ([], ["steps=9"]))
    folder = RunFolder(other.record_dir)
    folder.reserve(other)
    (folder.path / "checkpoints" / "step-00000002").mkdir(parents=True)
    reason = explain_new_run(plan, mill.store).reason
    assert reason.startswith(f"differs from {other.run_id}: ")
    assert "steps: 9 -> " in reason
    assert reason.endswith(f"only the command of {other.run_id} goes on from its step 2")
    atomic.write_json(folder.path / "outputs.json", {"outputs": {}})
    assert "goes on" not in explain_new_run(plan, mill.store).reason


def test_a_run_whose_output_was_removed_is_not_reused_and_says_who_removed_it(mill: Any) -> None:
    plan, store = mill.compile("mill/grow").target.plan, mill.store
    folder = RunFolder(plan.record_dir)
    folder.reserve(plan)
    staged = store.stage("sack")
    (staged / "sack.txt").write_text("grain")
    producer = Producer(run_id=plan.run_id, step=plan.step, slot="sack")
    made = store.commit(staged, name="grain", kind="grain", producer=producer)
    outputs = {"sack": {"ref": made.ref, "kind": made.kind, "digest": made.digest}}
    atomic.write_json(folder.path / "outputs.json", {"outputs": outputs})
    assert mill.compile("mill/grow").target.decision.action == "reuse"
    going = select(store.read_family(), wanted=[made.ref], keep={}).going
    store.remove(going, find_in_use=dict)
    decision = mill.compile("mill/grow").target.decision
    assert decision.action == "run"
    assert decision.reason == f"the outputs of {plan.run_id} were removed; generation 1"
    assert decision.details[0].startswith("grain:v1: was removed by ")
