"""The page of a store shows every family, says what it left out, and names what is broken."""

from __future__ import annotations

import re

import pytest

from nemotron_style.runtime.errors import UsageError
from nemotron_style.runtime.report.catalogue import (
    DEEPEST,
    MOST_BRANCHES,
    MOST_CHILDREN,
    Branch,
    Entry,
    build_families,
    collect_catalogue,
    cut,
    render_catalogue,
)
from nemotron_style.runtime.store.record import Artifact, Edge, Producer, Record
from nemotron_style.runtime.store.removal import remove
from nemotron_style.runtime.store.store import Store
from plans import build_plan
from report_world import EVIL, LOCAL, make_run, make_store

DIGEST = "sha256:" + "0" * 64


def entry(ref: str, *parents: str, run: str = "", at: int = 0, slot: str = "model") -> Entry:
    name, _, version = ref.partition(":v")
    edges = [
        Edge(slot=slot if index == 0 else f"in{index}", ref=parent, kind="k", digest=DIGEST)
        for index, parent in enumerate(parents)
    ]
    record = Record(
        name=name,
        version=int(version),
        kind="k",
        digest=DIGEST,
        files=(),
        created=f"2026-01-01T{at // 3600:02}:{at // 60 % 60:02}:{at % 60:02}+00:00",
        producer=Producer(run_id=run or f"run-{name}-{version}", step="s/t", slot="o"),
        inputs=tuple(edges),
    )
    return Entry(record)


def commit(store: Store, name: str, *inputs: Artifact, run: str) -> Artifact:
    staged = store.stage("test")
    (staged / "file").write_text(name)
    producer = Producer(run_id=run, step="s/t", slot="model")
    edges = [each.edge("model") for each in inputs]
    return store.commit(staged, name=name, kind="k", producer=producer, inputs=edges)


def test_a_run_hangs_below_the_model_that_it_went_on_from():
    families = build_families(
        [
            entry("data:v1"),
            entry("base:v1", "data:v1", slot="data", at=1),
            entry("judge:v1", at=2),
            entry("tuned:v1", "judge:v1", "base:v1", slot="judge", at=3),
        ]
    )
    assert [branch.main.ref for branch in families] == ["judge:v1", "data:v1"]
    tuned = entry("tuned:v1", "base:v1", "judge:v1", at=3)
    families = build_families([entry("base:v1"), entry("judge:v1"), tuned])
    base = next(branch for branch in families if branch.main.ref == "base:v1")
    assert [child.main.ref for child in base.children] == ["tuned:v1"]
    assert base.children[0].others == ["judge:v1"]
    (orphan,) = build_families([tuned])
    assert (orphan.parent, orphan.others) == ("", ["base:v1", "judge:v1"])


def test_what_was_measured_with_an_interval_stands_beside_what_it_is_of():
    def finding(**metrics: float) -> str:
        record = entry("arena:v1").record.model_copy(update={"metrics": metrics})
        return Branch([Entry(record)]).finding

    assert finding(win_rate=0.7, win_rate_low=0.6, win_rate_high=0.8) == "win rate 70% (60% to 80%)"
    ends = {"joint_difference_low": 0.1, "joint_difference_high": 0.3}
    found = finding(joint_difference=0.2, **ends)
    assert found == "joint difference +20.0 points (+10.0 to +30.0)"
    assert finding(pairs=9) == ""


def test_what_one_run_made_stands_together_and_families_with_the_newest_work_come_first():
    old = [entry("a:v1", run="r"), entry("a.truth:v1", run="r"), entry("late:v1", "a:v1", at=9)]
    families = build_families([*old, entry("b:v1", at=5)])
    assert [[each.record.ref for each in f.outputs] for f in families] == [
        ["a:v1", "a.truth:v1"],
        ["b:v1"],
    ]


def test_records_that_name_each_other_make_no_circle():
    families = build_families([entry("a:v1", "b:v1"), entry("b:v1", "a:v1"), entry("c:v1", "c:v1")])
    shown = {each.record.ref for each in cut(families)[1]}
    assert shown == {"a:v1", "b:v1", "c:v1"}


@pytest.mark.parametrize("shape", ["chain", "fan", "many"])
def test_of_thousands_of_artifacts_the_page_says_how_many_it_left_out(shape: str):
    parents = {"chain": lambda n: [f"m:v{n - 1}"], "fan": lambda n: ["m:v1"], "many": lambda n: []}
    entries = [
        entry(f"m:v{n}", *(parents[shape](n) if n > 1 else []), at=n) for n in range(1, 3_001)
    ]
    roots = build_families(entries)
    families, shown = cut(roots)
    left = len(roots) - len(families) + sum(map(_left_out, families))
    assert len(shown) + left == 3_000
    assert len(shown) <= MOST_BRANCHES
    assert len(shown) == {"chain": DEEPEST, "fan": MOST_CHILDREN + 1, "many": MOST_BRANCHES}[shape]
    if shape == "fan":
        newest = [child.main.version for child in families[0].children]
        assert newest == list(range(3_000, 3_000 - MOST_CHILDREN, -1))


def test_the_page_names_what_is_removed_and_what_cannot_be_read(tmp_path):
    store = Store(tmp_path)
    first = commit(store, "base", run="r1")
    commit(store, "tuned", first, run="r2")
    gone = commit(store, "gone", first, run="r3")
    broken = commit(store, "broken", first, run="r4")
    remove(store.layout, [gone.record], find_in_use=dict)
    (broken.path / "artifact.json").write_text("{}")
    page = render_catalogue(collect_catalogue(store))
    assert "2 artifacts of 1 kind," in page
    assert "Of 1 more, which were removed" in page
    assert re.search(r"gone:v1</span>[^/]*</span> <span[^>]*>removed<", page)
    assert "broken/v1/artifact.json" in page
    assert "was removed by" in page


def test_an_empty_store_is_refused(tmp_path):
    with pytest.raises(UsageError, match="holds no artifacts"):
        collect_catalogue(Store(tmp_path / "none"))


def _left_out(branch) -> int:
    return branch.left_out + sum(map(_left_out, branch.children))


def test_runs_that_made_nothing_are_named_with_their_error(tmp_path):
    store, _ = make_store(tmp_path / "complete")
    assert collect_catalogue(store).unfinished == []
    store = Store(tmp_path / "failed")
    failed = make_run(store, build_plan(LOCAL, store=str(store.root)), EVIL)
    catalogue = collect_catalogue(store)
    [known] = catalogue.unfinished
    assert (known.run_id, known.state, known.attempts) == (failed.run_id, "FAILED", 1)
    page = render_catalogue(catalogue)
    assert f">{failed.run_id}<" in page
    assert ">out of memory " in page
    assert "<img" not in page
