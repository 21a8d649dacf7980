"""The runs of a store, newest first, whether the index knows them or not."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.shared.plans import build_plan

from nemotron_style.runtime.run.folder import RunFolder, find_recent_runs, list_runs
from nemotron_style.runtime.run.plan import Plan, identify, name_run

_EVENTS = st.sampled_from(
    ["plan", "plan of another step", "of an earlier version", "cut off", "lost race", "remove"]
)


def _plan(store: Path, number: int, step: str = "sft/chat") -> Plan:
    identity = {"step": step, "config": {"seed": number}, "inputs": {}, "code": "c0de"}
    fingerprint = identify(identity)
    changes = {"identity": identity, "fingerprint": fingerprint, "store": str(store), "step": step}
    usual = {"executor": "local", "resources": {}, "run_id": name_run(step, fingerprint)}
    return build_plan(usual, **changes)


def _happen(event: str, store: Path, number: int) -> None:
    step = "sft/chat-more" if event == "plan of another step" else "sft/chat"
    plan = _plan(store, number, step)
    folder = RunFolder(plan.record_dir)
    if event == "of an earlier version":
        folder.path.mkdir(parents=True)
        (folder.path / "plan.json").write_text(plan.to_json())
        return
    if event == "remove":
        for run in list_runs(store, step="sft/chat")[:1]:
            shutil.rmtree(run.path)
        return
    folder.reserve(plan)
    if event == "lost race":
        assert not folder.reserve(plan)
    if event == "cut off":  # between the key and the folder
        shutil.rmtree(folder.path)


@settings(max_examples=25, deadline=None)
@given(events=st.lists(_EVENTS, max_size=8), limit=st.integers(1, 3))
def test_the_index_finds_the_newest_runs_of_a_step_that_have_a_key_and_all_where_none_has(
    tmp_path_factory: object, events: list[str], limit: int
) -> None:
    store = Path(tmp_path_factory.mktemp("store"))  # type: ignore[attr-defined]
    for number, event in enumerate(events):
        _happen(event, store, number)
    keys = store / "index" / "run" / "sft-chat"
    known = {name.partition("~")[2] for name in os.listdir(keys)} if keys.is_dir() else set()
    scanned = [run.run_id for run in list_runs(store, step="sft/chat")]
    expected = [run_id for run_id in scanned if run_id in known] or scanned
    found = [run.run_id for run in find_recent_runs(store, "sft/chat", limit)]
    assert found == expected[:limit]
