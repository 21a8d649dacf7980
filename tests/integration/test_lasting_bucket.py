"""A server of S3's protocol that keeps its data on disk, is killed, and is started again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bucket import BUCKET, lasting_bucket
from faulty_proxy import FaultyProxy
from nemotron_style.runtime.errors import StoreError
from nemotron_style.runtime.store.record import Artifact, Producer
from nemotron_style.runtime.store.roots.s3 import S3Bucket
from nemotron_style.runtime.store.store import Store
from seaweed import REASON, Seaweed

pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON)


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FaultyProxy, Seaweed]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_MAX_ATTEMPTS", "1")  # s3fs tries again itself
        with lasting_bucket(tmp_path_factory.mktemp("server"), share=0) as pair:
            yield pair


def commit(store: Store, staged: Path) -> Artifact:
    producer = Producer(run_id="run-1", step="a/b", slot="model")
    return store.commit(staged, name="model", kind="k", producer=producer)


def test_a_commit_goes_on_after_its_server_was_killed_in_the_middle(
    lasting: tuple[FaultyProxy, Seaweed], tmp_path: Path
) -> None:
    proxy, server = lasting
    store = Store(f"s3://{BUCKET}/killed", scratch=tmp_path / "scratch")
    staged = store.stage("test")
    (staged / "weights").write_bytes(b"w" * 5000)

    def kill(method: str, path: str) -> str:
        # Its files are there, and it is not decided yet.
        if method == "PUT" and "/index/output/" in path:
            server.kill()
        return ""

    proxy.choose = kill
    with pytest.raises(StoreError, match=r"cannot be reached|does not answer|cannot at the moment"):
        commit(store, staged)
    proxy.choose = lambda method, path: ""
    server.start()
    assert commit(store, staged).ref == "model:v1", "it goes on under the version that it has"
    other = Store(str(store.root), scratch=tmp_path / "other")
    assert (other.fetch(other.resolve("model")) / "weights").read_bytes() == b"w" * 5000
    assert other.verify_all(deep=True) == (1, [])


def test_a_server_that_asks_who_one_is_refuses_another_secret(
    lasting: tuple[FaultyProxy, Seaweed], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another-word")
    with pytest.raises(StoreError, match="the bucket refuses these credentials; export AWS_ACCESS"):
        S3Bucket(f"s3://{BUCKET}/refused").put("key", b"")
