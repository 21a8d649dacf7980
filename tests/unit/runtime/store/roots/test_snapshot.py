"""A bucket that is looked at as a whole is listed once."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nemotron_style.runtime.store.record import Producer
from nemotron_style.runtime.store.roots.memory import MemoryBucket
from nemotron_style.runtime.store.roots.object_path import ObjectPath
from nemotron_style.runtime.store.roots.snapshot import Snapshot, take_snapshot
from nemotron_style.runtime.store.store import Store

KEYS = ("a/b/c", "a/b.d", "a/b/d/e", "a/b0", "a.txt", "a0", "b", "a/z")


@pytest.fixture
def bucket() -> MemoryBucket:
    return MemoryBucket(f"memory://{uuid.uuid4().hex}")


@pytest.mark.parametrize("limit", [None, 1, 2])
@pytest.mark.parametrize("deep", [True, False])
def test_it_lists_what_the_bucket_lists(
    bucket: MemoryBucket, deep: bool, limit: int | None
) -> None:
    for key in KEYS:
        bucket.put(key, key.encode())
    snapshot = Snapshot(bucket)
    for prefix in ("", "a", "a/", "a/b", "a/b/", "b", "c"):
        words: dict[str, Any] = {"deep": deep, "limit": limit}
        assert list(snapshot.list(prefix, **words)) == list(bucket.list(prefix, **words)), prefix
    assert snapshot.state("a/b/c") == bucket.state("a/b/c")
    assert snapshot.state("a/b") is None
    assert snapshot.read_range("a/b/c", 0, 3) == b"a/b"


def test_it_is_of_one_moment_and_of_buckets_only(bucket: MemoryBucket, tmp_path: Path) -> None:
    bucket.put("x", b"1")
    snapshot = take_snapshot(ObjectPath(bucket))
    assert snapshot
    assert (snapshot / "x").read_text() == "1"
    bucket.put("y", b"2")
    bucket.put("x", b"3")
    assert ((snapshot / "x").read_text(), (snapshot / "y").is_file()) == ("1", False)
    assert take_snapshot(snapshot) is None
    assert take_snapshot(tmp_path) is None


def test_a_commit_while_the_store_is_listed_is_no_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The listing has its keys, which come late in it, and not yet its files."""
    store = Store(f"memory://{uuid.uuid4().hex}", scratch=tmp_path)
    staged = store.stage("new")
    (staged / "weights").write_text("w")
    producer = Producer(run_id="r-1", step="a/b", slot="model")
    store.commit(staged, name="model", kind="k", producer=producer)
    real, listings = MemoryBucket.list, []

    def late(self: MemoryBucket, prefix: str, **words: Any) -> Iterator[Any]:
        found = list(real(self, prefix, **words))
        if not prefix:
            listings.append(prefix)
            found = [one for one in found if not one[0].startswith("artifacts/model/v1")]
        return iter(found)

    monkeypatch.setattr(MemoryBucket, "list", late)
    assert store.verify_all(deep=True) == (1, [])
    assert len(listings) == 1
    (store.layout.version("model", 1) / "weights").unlink()
    assert "holds no files" in str(store.verify_all(deep=True)[1][0])
