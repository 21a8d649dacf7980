"""The runs of a store, newest first, whether the index knows them or not."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.run.listing import find_recent_runs, list_runs, scan_runs
from nemotron_style.runtime.run.plan import Plan, identify, name_run
from plans import build_plan

_EVENTS = st.sampled_from(
    [
        *(
            "plan",
            "plan of another step",
            "of an earlier version",
            "cut off",
            "lost race",
            "remove",
        ),
        "folder without a plan",
    ]
)
_LOST = "times lost in a copy"  # where the order of runs without a key says nothing
_ANY = st.lists(_EVENTS | st.just(_LOST), max_size=8).filter(
    lambda events: not {_LOST, "of an earlier version"} <= set(events)
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
    if event == "folder without a plan":
        folder.path.mkdir(parents=True)
        return
    if event == _LOST:
        for run in list_runs(store):
            os.utime(run.path / "plan.json")
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


def _store_after(events: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("store")
    for number, event in enumerate(events):
        _happen(event, store, number)
    return store


@settings(max_examples=25, deadline=None)
@given(events=st.lists(_EVENTS, max_size=8), limit=st.integers(1, 3))
def test_the_index_finds_the_newest_runs_of_a_step_that_have_a_key_and_all_where_none_has(
    tmp_path_factory: pytest.TempPathFactory, events: list[str], limit: int
) -> None:
    store = _store_after(events, tmp_path_factory)
    keys = store / "index" / "run" / "sft-chat"
    known = {name.partition("~")[2] for name in os.listdir(keys)} if keys.is_dir() else set()
    scanned = [run.run_id for run in list_runs(store, step="sft/chat")]
    expected = [run_id for run_id in scanned if run_id in known] or scanned
    found = [run.run_id for run in find_recent_runs(store, "sft/chat", limit)]
    assert found == expected[:limit]


@settings(max_examples=40, deadline=None)
@given(events=_ANY, limit=st.integers(1, 3))
def test_the_newest_runs_are_the_same_whether_keys_tell_them_or_every_folder_is_looked_at(
    tmp_path_factory: pytest.TempPathFactory, events: list[str], limit: int
) -> None:
    store = _store_after(events, tmp_path_factory)
    for step in ("", "sft/chat"):
        every, _, none_more = scan_runs(store, step=step)
        newest, _, more = scan_runs(store, step=step, limit=limit)
        assert (newest, more, none_more) == (every[:limit], max(len(every) - limit, 0), 0)


def test_only_the_runs_that_are_listed_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(9):
        plan = _plan(tmp_path, number)
        RunFolder(plan.record_dir).reserve(plan)
    looked_at: list[str] = []
    real = os.stat
    module = "nemotron_style.runtime.run.listing.os.stat"
    monkeypatch.setattr(
        module, lambda path, **how: looked_at.append(str(path)) or real(path, **how)
    )
    newest, _, more = scan_runs(tmp_path, limit=2)
    monkeypatch.undo()
    assert len([path for path in looked_at if path.endswith("plan.json")]) == 2
    assert (newest, more) == (list_runs(tmp_path)[:2], 7)
