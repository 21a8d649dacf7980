"""A store of several users: shared by its group, or not."""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nemotron_style.runtime import atomic
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.store.record import Producer
from nemotron_style.runtime.store.store import Store

ALICE, BOB, TEAM = 20_001, 20_002, 20_000

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act for other users")


@pytest.fixture
def root() -> Iterator[Path]:
    """The root of a store in a folder that every user can reach; it is not made yet."""
    above = Path(tempfile.mkdtemp(dir="/tmp"))
    above.chmod(0o777)
    yield above / "store"
    shutil.rmtree(above)


def act_for(user: int, action: Callable[[], object], *, umask: int = 0o022) -> object:
    """What ``action`` returns, as JSON, in a process of ``user``, who belongs to the team."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([TEAM])
            os.setgid(user)
            os.setuid(user)
            os.umask(umask)
            os.write(writer, json.dumps({"value": action()}).encode())
            os._exit(0)
        except BaseException:
            os.write(writer, json.dumps({"error": traceback.format_exc()}).encode())
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = json.loads(pipe.read())
    os.waitpid(child, 0)
    if "error" in answer:
        raise AssertionError(answer["error"])
    return answer["value"]


def commit(root: Path, run: str, *, private: bool = True) -> str:
    store = Store(root)
    atomic.loosen_umask(root)
    folder = root / "runs" / run / "staging" / "1" / "model"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sub").mkdir()
    (folder / "sub" / "weights").write_text(run)
    if private:  # as libraries make their files
        os.close(tempfile.mkstemp(dir=folder)[0])
    producer = Producer(run_id=run, step="a/b", slot="model")
    return store.commit(folder, name="model", kind="k", producer=producer).ref


def read_all(root: Path) -> list[object]:
    store = Store(root)
    checked, problems = store.verify_all(deep=True)
    return [checked, [str(problem) for problem in problems]]


def test_a_shared_store_is_written_and_tidied_by_both_whatever_their_umask(root: Path) -> None:
    root.mkdir()
    os.chown(root, ALICE, TEAM)
    root.chmod(0o2770)
    assert act_for(ALICE, lambda: commit(root, "r-1"), umask=0o077) == "model:v1"
    assert act_for(BOB, lambda: commit(root, "r-2"), umask=0o077) == "model:v2"
    assert act_for(ALICE, lambda: commit(root, "r-3")) == "model:v3"
    for user in (ALICE, BOB):
        assert act_for(user, lambda: read_all(root)) == [3, []]

    def leave() -> str:
        staged = Store(root).stage("left")
        (staged / "x").write_text("x")
        atomic.write_json(RunFolder(root / "runs" / "r-9").path / "a.json", {})
        return staged.name

    left = act_for(BOB, leave, umask=0o077)
    assert stat.S_IMODE((root / "runs" / "r-9" / "a.json").stat().st_mode) == 0o660
    tidied = act_for(ALICE, lambda: vars(Store(root).collect_garbage(grace_s=-1)))
    assert isinstance(tidied, dict)
    assert (tidied["removed"], tidied["skipped"]) == ([f"staging/{left}"], [])


def test_one_commits_what_the_other_has_staged_and_can_change_it_no_more(root: Path) -> None:
    root.mkdir()
    os.chown(root, ALICE, TEAM)
    root.chmod(0o2770)
    folder = root / "runs" / "r-1" / "staging" / "1" / "model"

    def stage() -> None:
        atomic.loosen_umask(root)
        folder.mkdir(parents=True)
        (folder / "weights").write_text("w")

    def finish() -> str:
        producer = Producer(run_id="r-1", step="a/b", slot="model")
        return Store(root).commit(folder, name="model", kind="k", producer=producer).ref

    act_for(ALICE, stage)
    assert act_for(BOB, finish) == "model:v1"
    weights = root / "artifacts" / "model" / "v1" / "weights"
    assert (weights.stat().st_uid, stat.S_IMODE(weights.stat().st_mode)) == (BOB, 0o444)


def test_a_store_that_is_not_shared_is_read_and_refused_before_the_run(root: Path) -> None:
    def prepare() -> str:
        root.mkdir()
        return commit(root, "r-1", private=False)

    def look() -> list[str]:
        return [str(path.relative_to(root)) for path in Store(root).unwritable(["model", "new"])]

    act_for(ALICE, prepare)
    assert act_for(ALICE, look) == []
    assert act_for(BOB, lambda: read_all(root)) == [1, []]
    refused = act_for(BOB, look)
    assert isinstance(refused, list)
    assert {"staging", "runs", "artifacts", "artifacts/model/.claims"} <= {*refused}
