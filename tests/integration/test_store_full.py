"""A store on a disk that is full: it is read, nothing is half there, and gc makes room."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from nemotron_style.runtime.cli import main
from nemotron_style.runtime.errors import InputError
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.store.record import Producer
from nemotron_style.runtime.store.store import Store

MEGABYTES = int(os.environ.get("STORE_DISK_MB", "64"))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, as large as ``STORE_DISK_MB`` says."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("nothing can be mounted here")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(path: Path) -> None:
    """Write until nothing more fits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def commit(store: Store, run: str) -> str:
    folder = store.root / "runs" / run / "staging" / "1" / "model"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "weights").exists():
        (folder / "weights").write_bytes(run.encode() * 100)
    producer = Producer(run_id=run, step="a/b", slot="model")
    return store.commit(folder, name="model", kind="k", producer=producer).ref


def test_a_full_store_is_read_and_loses_nothing_and_gc_makes_room(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(disk / "store")
    monkeypatch.setenv("NEMOTRON_STYLE_HOME", str(store.root))
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(b"{}\n" * 4096)
    assert commit(store, "r-1") == "model:v1"
    whole = store.resolve("model")
    failed = RunFolder(store.root / "runs" / "failed-1")
    attempt = failed.claim_attempt()
    assert attempt is not None
    (failed.path / "plan.json").write_text("{}")
    attempt.close("FAILED")
    staged = store.root / "runs" / "r-2" / "staging" / "1" / "model"
    staged.mkdir(parents=True)
    (staged / "weights").write_bytes(b"r-2")
    fill(failed.path / "staging" / "1" / "model" / "weights")
    monkeypatch.chdir(tmp_path)

    for words in (["list"], ["show", "model"], ["lineage", "model"], ["verify"]):
        assert main(["artifacts", *words]) == 0, words
        assert "Traceback" not in capsys.readouterr().err
    assert main(["runs", "list"]) == 0
    with pytest.raises(OSError, match="No space left"):
        commit(store, "r-2")
    with pytest.raises(InputError, match="are free, and a copy of"):
        store.adopt(rows, kind="raw_jsonl", name="rows")
    assert store.verify_all(deep=True) == (1, [])
    assert (staged / "weights").read_bytes() == b"r-2"

    assert main(["artifacts", "gc"]) == 0  # what is young stays
    assert (failed.path / "staging" / "1" / "model" / "weights").exists()
    assert main(["artifacts", "gc", "--grace", "0"]) == 0
    assert "removed runs/failed-1/staging/1" in capsys.readouterr().out
    assert commit(store, "r-2").startswith("model:v")
    assert store.adopt(rows, kind="raw_jsonl", name="rows").ref == "rows:v1"
    assert store.verify_all(deep=True) == (3, [])
    assert store.resolve("model:v1") == whole


@pytest.mark.parametrize("room", [0, 1, 2, 4, 8, 16])
def test_a_disk_that_fills_up_at_any_point_of_a_commit_leaves_nothing_half(
    disk: Path, room: int
) -> None:
    store = Store(disk / "store")
    commit(store, "r-1")
    staged = store.root / "runs" / "r-2" / "staging" / "1" / "model"
    staged.mkdir(parents=True)
    (staged / "weights").write_bytes(b"r-2")
    with (disk / "room").open("wb") as file:
        file.write(bytes(4096 * max(room, 1)))
    fill(disk / "filler")
    if room:
        (disk / "room").unlink()
    with suppress(OSError):
        commit(store, "r-2")
    assert [artifact.ref for artifact in store.artifacts()][-1] == "model:v1"
    (disk / "filler").unlink()
    producer_output = store.finish_commit("r-2", "model")
    assert (producer_output.ref if producer_output else commit(store, "r-2")).startswith("model:v")
    store.collect_garbage(grace_s=-1)
    assert store.verify_all(deep=True) == (2, [])
