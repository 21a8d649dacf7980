"""What a bucket keeps of complete runs, found from a machine that never saw them."""

from __future__ import annotations

import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemotron_style.runtime.errors import RefError
from nemotron_style.runtime.planning.planner import compile_pipeline
from nemotron_style.runtime.planning.request import RunRequest
from nemotron_style.runtime.run.kept_run import find_complete_run, note_outputs
from nemotron_style.runtime.store.record import Producer
from nemotron_style.runtime.store.store import Store


def test_a_complete_run_is_found_from_any_machine_with_its_plan(mill: Any, tmp_path: Path) -> None:
    url = f"memory://{uuid.uuid4().hex}/team"
    there, here = (Store(url, scratch=tmp_path / name) for name in ("there", "here"))
    context = replace(mill.context(), store=there)
    plan = compile_pipeline(RunRequest("mill/grow"), context=context).target.plan
    staged = there.stage("out")
    (staged / "a.txt").write_text("grain")
    producer = Producer(run_id=plan.run_id, step=plan.step, slot="sack")
    made = there.commit(staged, name="grain", kind="training_jsonl", producer=producer)
    with pytest.raises(RefError, match="no such run"):
        find_complete_run(here, made.ref)  # its outputs are not all committed yet
    outputs = {"outputs": {"sack": {"ref": made.ref}}, "figures": {}}
    note_outputs(plan, there, outputs)

    for word in (made.ref, "grain", plan.run_id):
        found = find_complete_run(here, word)
        assert (found.run_id, found.plan, found.outputs) == (plan.run_id, plan, outputs)
        assert (found.state, found.attempts) == ("COMPLETED", [])
    for word in ("latest", "grain:v2", "../x", "mill-grow-000000000000"):
        with pytest.raises(RefError, match="no such run"):
            find_complete_run(here, word)
