"""Random families: what ``artifacts rm`` and ``gc --keep`` take, and what they leave."""

from __future__ import annotations

import json
import os
import shutil
import time
import traceback
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from commands import run_command
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.run.plan import identify, name_run
from nemotron_style.runtime.store.lineage.graph import walk
from nemotron_style.runtime.store.record import Artifact, Producer
from nemotron_style.runtime.store.store import Store
from plans import build_plan

LARGEST = 8
LOCAL = {"executor": "local"}
NUMBERS = st.sets(st.integers(0, LARGEST - 1))
SOME = st.sets(st.integers(0, LARGEST - 1), min_size=1)
# Each artifact is made from some of those before it.
GRAPHS = st.lists(NUMBERS, min_size=1, max_size=LARGEST).map(
    lambda rows: [{one for one in row if one < at} for at, row in enumerate(rows)]
)


def remove_each(folder: Path, *, graphs: int) -> dict[str, Any]:
    """Figures of so many random graphs, each a store from which some of its artifacts are removed.

    Checked: what stays has all its ancestors, what a run under way reads stays with its own, a dry
    run changes nothing, and what it announced goes and frees what it said, or is refused whole.
    """
    began = time.monotonic()
    figures: Counter[str] = Counter()

    @settings(
        max_examples=graphs,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],  # the first that fails will do
        suppress_health_check=list(HealthCheck),
    )
    @given(graph=GRAPHS, chosen=SOME, running=NUMBERS, linked=NUMBERS, is_gc=st.booleans())
    def check(
        graph: list[set[int]], chosen: set[int], running: set[int], linked: set[int], is_gc: bool
    ) -> None:
        shutil.rmtree(folder / "store", ignore_errors=True)
        store = Store(folder / "store")
        made = _make(store, graph)
        _share_files([made[one] for one in linked if one < len(made)])
        # Few runs, or hardly anything could ever go.
        used = _begin([made[one] for one in running if one < len(made) and not one % 4], store)
        refs = sorted({made[one % len(made)].ref for one in chosen})
        figures["graphs"] += 1
        figures.update(_check(store, folder, refs, used, is_gc=is_gc))

    wrong = []
    try:
        check()
    except AssertionError as error:
        wrong.append("".join(traceback.format_exception(error, limit=-2)))
    counts = {name: figures[name] for name in ("graphs", "removed", "stayed", "refused")}
    return {**counts, "wrong": wrong, "seconds": round(time.monotonic() - began, 1)}


def _make(store: Store, graph: list[set[int]]) -> list[Artifact]:
    made: list[Artifact] = []
    for number, parents in enumerate(graph):
        staged = store.stage("test")
        (staged / "own").write_text(f"of {number}")
        (staged / "same").write_text("of many")
        edges = [made[one].edge(f"in{one}") for one in sorted(parents)]
        producer = Producer(run_id=f"run-{number}", step="a/b", slot="out")
        name = f"a{number}"
        made.append(store.commit(staged, name=name, kind="k", producer=producer, inputs=edges))
    return made


def _share_files(artifacts: list[Artifact]) -> None:
    """Equal files of these become one on the disk, as where a store keeps them once."""
    for artifact in artifacts[1:]:
        (artifact.path / "same").unlink()
        os.link(artifacts[0].path / "same", artifact.path / "same")


def _begin(read: list[Artifact], store: Store) -> list[str]:
    """Make for each artifact a run that is about to begin and reads it; their refs."""
    for artifact in read:
        identity = {"inputs": {"data": artifact.digest}}
        fingerprint = identify(identity)
        run_id = name_run("sft/chat", fingerprint)
        inputs = [{"slot": "data", "kind": "k", "source": artifact.digest}]
        changes = {"run_id": run_id, "identity": identity, "fingerprint": fingerprint}
        plan = build_plan(LOCAL, **changes, inputs=inputs, outputs=(), store=str(store.root))
        assert RunFolder(store.layout.runs / run_id).reserve(plan)
    return [artifact.ref for artifact in read]


def _check(
    store: Store, folder: Path, refs: list[str], used: list[str], *, is_gc: bool
) -> dict[str, int]:
    """Remove the refs, or with ``is_gc`` all that they do not need; counts of what happened."""
    before = {artifact.ref: artifact for artifact in store.artifacts()}
    ancestors = {ref: set(walk(store, artifact).nodes) for ref, artifact in before.items()}
    in_use = _union(ancestors[ref] for ref in used)
    kept = _union(ancestors[ref] for ref in refs) if is_gc else set(before) - set(refs)
    needed = _union(ancestors[ref] for ref in kept) | in_use
    size = _size(store)
    words = ["gc", *(word for ref in refs for word in ("--keep", ref))] if is_gc else ["rm", *refs]
    code, out, err = run_command(store.root, "artifacts", *words, "--json", folder=folder)
    assert set(_refs(store)) == set(before), "a dry run has changed something"
    if code:
        assert not is_gc, out + err
        assert needed & set(refs), f"refused without a reason: {out + err}"
        assert "Traceback" not in err, err
        code, _, _ = run_command(store.root, "artifacts", *words, "--yes", folder=folder)
        assert code == 2
        assert set(_refs(store)) == set(before), "what was refused has happened"
        return {"refused": 1}
    said = json.loads(out)
    going = {each["ref"] for each in said["going"]}
    assert going == set(before) - needed, "what goes is not what nobody needs"
    words += ["--yes", "--json"]
    code, out, err = run_command(store.root, "artifacts", *words, folder=folder)
    assert code == 0, err
    done = json.loads(out)
    left = set(_refs(store))
    assert left == set(before) - going, "something else has gone"
    assert set(done["removed"]) == going, "something else was told"
    assert done["freed"] == said["would_free"] == size - _size(store), "another size was told"
    assert all(ancestors[ref] <= left for ref in left), "an ancestor of what stays has gone"
    assert store.verify_all(deep=True) == (len(left), []), "what stays is not whole"
    return {"removed": len(going), "stayed": len(left)}


def _union(sets: Any) -> set[str]:
    return set().union(*sets)


def _refs(store: Store) -> Collection[str]:
    return [artifact.ref for artifact in store.artifacts()]


def _size(store: Store) -> int:
    """Bytes of all artifacts, each file once, whatever its names."""
    paths = [path for path in store.layout.artifacts.rglob("v1/**/*") if path.is_file()]
    return sum({(state := path.stat()).st_ino: state.st_size for path in paths}.values())
