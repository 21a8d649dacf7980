"""The operations of a bucket against a server of S3's protocol."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import s3_server
from nemotron_style.runtime.errors import StoreError
from nemotron_style.runtime.store.roots import multipart
from nemotron_style.runtime.store.roots.object_path import ObjectPath
from nemotron_style.runtime.store.roots.progress import Progress
from nemotron_style.runtime.store.roots.s3 import S3Bucket

pytestmark = pytest.mark.skipif(bool(s3_server.REASON), reason=s3_server.REASON)
MIB = 1 << 20


@pytest.fixture(scope="module")
def server() -> Iterator[s3_server.S3Server]:
    with s3_server.running_s3() as running:
        yield running


@pytest.fixture
def bucket(server: s3_server.S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Bucket:
    name = f"b-{uuid.uuid4().hex}"
    server.make_bucket(name)
    for key, value in server.environment.items():
        monkeypatch.setenv(key, value)
    return S3Bucket(f"s3://{name}/a/b")


def test_of_many_creators_one_wins_and_a_listing_is_by_folder(bucket: S3Bucket) -> None:
    wins: list[bool] = []
    threads = [
        threading.Thread(target=lambda at=at: wins.append(bucket.create("x/key", b"%d" % at)))
        for at in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(wins) == [False] * 7 + [True]
    kept = bucket.read("x/key")
    bucket.put("x/y/deep", b"1")
    bucket.put("z", b"")
    assert [key for key, _ in bucket.list("x/")] == ["x/key", "x/y"]
    assert [key for key, _ in bucket.list("", deep=True)] == ["x/key", "x/y/deep", "z"]
    assert bucket.read("x/key") == kept
    state = bucket.state("x/key")
    assert state
    assert state.size == 1
    bucket.delete(["x/key", "no-such-key"])
    assert bucket.state("x/key") is None
    with pytest.raises(FileNotFoundError):
        bucket.read("x/key")


def test_an_upload_goes_on_with_the_parts_that_were_not_sent(
    bucket: S3Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multipart, "PART", 5 * MIB)
    monkeypatch.setattr(multipart, "THREADS", 1)
    source = tmp_path / "weights"
    source.write_bytes(os.urandom(17 * MIB))
    sent: list[int] = []
    real = S3Bucket.call

    def count(self: S3Bucket, method: str, key: str, **words: Any) -> dict[str, Any]:
        if method == "upload_part":
            if len(sent) == 2:
                raise StoreError("cut off")
            sent.append(words["PartNumber"])
        return real(self, method, key, **words)

    monkeypatch.setattr(S3Bucket, "call", count)
    uploads: dict[str, str] = {}
    with pytest.raises(StoreError):
        bucket.upload(source, "weights", uploads=uploads, progress=Progress("x", 1))
    assert bucket.state("weights") is None
    assert sent == [1, 2]
    monkeypatch.setattr(S3Bucket, "call", real)
    again: list[int] = []

    def note(self: S3Bucket, method: str, key: str, **words: Any) -> dict[str, Any]:
        again.extend([words["PartNumber"]] if method == "upload_part" else [])
        return real(self, method, key, **words)

    monkeypatch.setattr(S3Bucket, "call", note)
    bucket.upload(source, "weights", uploads=uploads, progress=Progress("x", 1))
    assert (again, uploads) == ([3, 4], {})
    assert bucket.read("weights") == source.read_bytes()
    assert bucket.read_range("weights", 5, 9) == source.read_bytes()[5:9]
    # An upload that the bucket no longer knows begins anew.
    forgotten = {"weights": "no-such-upload"}
    bucket.upload(source, "weights", uploads=forgotten, progress=Progress("x", 1))
    assert again == [3, 4, 1, 2, 3, 4]


def test_a_bucket_that_is_gone_or_silent_says_so_in_a_line(
    bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = S3Bucket(f"s3://b-{uuid.uuid4().hex}")
    for ask in (lambda: list(gone.list("")), lambda: gone.read("x"), lambda: gone.put("x", b"")):
        with pytest.raises(StoreError, match="there is no such bucket; make it"):
            ask()
    with monkeypatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
            patch.delenv(name, raising=False)
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            patch.setenv(name, "/dev/null")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        with pytest.raises(StoreError, match="there are no credentials; export AWS_ACCESS_KEY_ID"):
            S3Bucket("s3://bucket").read("x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match="cannot be reached; is AWS_ENDPOINT_URL right"):
        S3Bucket("s3://bucket").read("x")


def test_a_folder_that_a_console_made_is_none(bucket: S3Bucket) -> None:
    for key in ("x/", "x/y/", "x/y/z/"):
        bucket.put(key, b"")
    assert not ObjectPath(bucket, "x").is_dir()
    bucket.put("x/y/z/key", b"1")
    assert ObjectPath(bucket, "x").is_dir()
    assert [key for key, _state in bucket.list("", deep=True)] == ["x/y/z/key"]
    assert [key for key, _state in bucket.list("x/")] == ["x/y"]
