"""A bucket whose server fails: each answer of ours is right all the same."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bucket import BUCKET, RandomFaults, faulty_bucket
from faulty_proxy import FAULTS, Choose, FaultyProxy
from nemotron_style.runtime.store.digest import Found, hash_file
from nemotron_style.runtime.store.record import Producer
from nemotron_style.runtime.store.roots.object_path import ObjectPath
from nemotron_style.runtime.store.roots.s3 import S3Bucket
from nemotron_style.runtime.store.store import Store
from s3_server import REASON

pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON)


@pytest.fixture(scope="module")
def proxy() -> Iterator[FaultyProxy]:
    with faulty_bucket(share=0) as proxy:
        yield proxy


@pytest.fixture
def bucket(proxy: FaultyProxy, request: pytest.FixtureRequest) -> S3Bucket:
    proxy.choose = lambda method, path: ""
    return S3Bucket(f"s3://{BUCKET}/{request.node.name}")


def once(fault: str, wanted: str) -> Choose:
    """The fault for the first request of a method, and none after it."""
    left = [fault]

    def choose(method: str, path: str) -> str:
        return left.pop() if left and method == wanted else ""

    return choose


@pytest.mark.parametrize("fault", FAULTS)
def test_a_creation_knows_whether_it_was_the_first(
    proxy: FaultyProxy, bucket: S3Bucket, fault: str
) -> None:
    proxy.choose = once(fault, "PUT")
    assert bucket.create("key", b"mine"), "it was carried out, or again, and there was no other"
    proxy.choose = once(fault, "PUT")
    assert not bucket.create("key", b"theirs")
    assert bucket.read("key") == b"mine"
    assert proxy.befallen[fault] >= 2


@pytest.mark.parametrize("fault", ["500", "half", "lost"])
def test_what_is_read_is_whole(proxy: FaultyProxy, bucket: S3Bucket, fault: str) -> None:
    data = bytes(range(256)) * 512
    bucket.put("object", data)
    place = ObjectPath(bucket, "object")
    readers: list[Callable[[], object]] = [
        lambda: bucket.read("object") == data,
        lambda: bucket.read_range("object", 7, 70_000) == data[7:70_000],
        lambda: hash_file(Found("object", place)).file.sha256 == hashlib.sha256(data).hexdigest(),
        lambda: [key for key, _state in bucket.list("")] == ["object"],
    ]
    for read in readers:
        proxy.choose = once(fault, "GET")
        assert read() is True


def test_a_commit_over_a_bad_line_is_whole_and_there_once(
    proxy: FaultyProxy, bucket: S3Bucket, tmp_path: Path
) -> None:
    """One in fifteen requests fails."""
    proxy.choose = RandomFaults(1 / 15, seed=1).choose
    (tmp_path / "rows.jsonl").write_text("{}\n")
    store = Store(bucket.url)
    rows = store.adopt(tmp_path / "rows.jsonl", kind="raw_jsonl", name="rows")
    staged = store.stage("test")
    (staged / "weights").write_bytes(b"w" * 5000)
    producer = Producer(run_id="run-1", step="a/b", slot="model")
    model = store.commit(
        staged, name="model", kind="k", producer=producer, inputs=[rows.edge("data")]
    )
    assert [each.ref for each in store.artifacts()] == [model.ref, rows.ref]
    assert (store.fetch(model) / "weights").read_bytes() == b"w" * 5000
    assert store.verify_all(deep=True) == (2, [])
