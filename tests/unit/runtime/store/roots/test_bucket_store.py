"""A store in a bucket keeps the promises of one in a folder."""

from __future__ import annotations

import heapq
import itertools
import random
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest

from nemotron_style.runtime.errors import ArtifactError, InputError, RefError, StoreError
from nemotron_style.runtime.store import claim
from nemotron_style.runtime.store.record import Artifact, Edge, Producer, render_sealed
from nemotron_style.runtime.store.removal import select
from nemotron_style.runtime.store.roots import location
from nemotron_style.runtime.store.roots.explain import explain
from nemotron_style.runtime.store.roots.memory import MemoryBucket
from nemotron_style.runtime.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(f"memory://{uuid.uuid4().hex}/some/where", scratch=tmp_path / "scratch")


def coded(code: str) -> Exception:
    """An error as the libraries of AWS raise it."""
    error = OSError(f"said {code}")
    error.response = {"Error": {"Code": code}}  # type: ignore[attr-defined]
    return error


def commit(
    store: Store, text: str, *, run: str = "", name: str = "model", inputs: tuple[Edge, ...] = ()
) -> Artifact:
    staged = store.stage("new")
    (staged / "a.txt").write_text(text)
    (staged / "sub").mkdir()
    (staged / "sub" / "b.txt").write_text(text)
    producer = Producer(run_id=run or f"r-{text}", step="a/b", slot="model")
    return store.commit(staged, name=name, kind="k", producer=producer, inputs=inputs)


def test_an_artifact_is_found_by_every_ref_and_from_every_machine(
    store: Store, tmp_path: Path
) -> None:
    first = commit(store, "one")
    second = commit(store, "two", inputs=(first.edge("base"),))
    assert [each.ref for each in (first, second)] == ["model:v1", "model:v2"]
    other = Store(str(store.root), scratch=tmp_path / "other")
    for ref in ("model", "model:v2", second.digest[:20], "run:r-two/model"):
        assert other.resolve(ref).record == second.record
    assert other.verify_all(deep=True) == (2, [])
    folder = other.fetch(other.resolve("model:v1"))
    assert folder.is_relative_to(tmp_path / "other")
    assert (folder / "sub" / "b.txt").read_text() == "one"


def test_what_was_uploaded_or_fetched_once_is_not_fetched_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = commit(store, "one")
    read: list[str] = []
    real = MemoryBucket.read_range
    monkeypatch.setattr(
        MemoryBucket, "read_range", lambda self, *args: read.append(args[0]) or real(self, *args)
    )
    folder = store.fetch(artifact)
    assert read == []
    (folder / "a.txt").chmod(0o644)
    (folder / "a.txt").write_text("changed by somebody")
    assert (store.fetch(artifact) / "a.txt").read_text() == "one"
    assert len(read) == 2
    store.fetch(artifact)
    assert len(read) == 2


def test_a_download_that_is_not_what_was_committed_is_refused_and_not_kept(store: Store) -> None:
    artifact = commit(store, "one")
    shutil.rmtree(store.layout.cache)
    store.root.bucket.put((artifact.path / "a.txt").key, b"two")  # type: ignore[attr-defined]
    with pytest.raises(ArtifactError, match=r"model:v1: a.txt: has other content"):
        store.fetch(artifact)
    assert list(store.layout.cache.iterdir()) == []
    assert [problem.what for problem in store.verify(artifact, deep=False)] == ["has other content"]
    (artifact.path / "sub" / "b.txt").unlink()
    assert "is missing" in str(store.verify_all(deep=False)[1][0])
    with pytest.raises(ArtifactError, match="is missing"):
        store.fetch(artifact)


REQUESTS = ("create", "put", "read", "read_range", "state", "list", "delete", "upload")


class CountingBucket(MemoryBucket):
    """Counts what S3 would be asked: each of these operations is one request to it."""

    asked: ClassVar[list[str]] = []

    def __getattribute__(self, name: str) -> Any:
        if name in REQUESTS:
            # What a bucket in memory does with its own operations is no request.
            self.asked.append(name)
            return getattr(MemoryBucket(self.url), name)
        return super().__getattribute__(name)


def test_a_publish_costs_few_requests(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figures of docs/store.md."""
    monkeypatch.setitem(location.BUCKETS, "memory", CountingBucket)
    store = Store(f"memory://{uuid.uuid4().hex}", scratch=tmp_path / "scratch")
    (tmp_path / "rows.jsonl").write_text("{}\n")

    def publish(text: str, inputs: tuple[Edge, ...] = ()) -> Artifact:
        staged = store.stage("new")
        (staged / "weights").write_text(text)
        producer = Producer(run_id=f"r-{text}", step="a/b", slot="model")
        return store.commit(staged, name="model", kind="k", producer=producer, inputs=inputs)

    def adopt() -> Artifact:
        return store.adopt(tmp_path / "rows.jsonl", kind="raw", name="rows")

    first = publish("one")
    rows = adopt()
    costs = {}
    acts: dict[str, Callable[[], object]] = {
        "publish": lambda: publish("two"),
        "publish again": lambda: publish("two"),
        "publish with an input": lambda: publish("three", (rows.edge("data"),)),
        "adopt again": adopt,
        "latest": lambda: store.resolve("model"),
        "a version": lambda: store.resolve("model:v2"),
        "verify": lambda: store.verify(first, deep=False),
        "verify all 4": lambda: store.verify_all(deep=True),
    }
    for name, act in acts.items():
        CountingBucket.asked.clear()
        act()
        costs[name] = len(CountingBucket.asked)
    (tmp_path / "rows.jsonl").write_text("[]\n")
    CountingBucket.asked.clear()
    adopt()
    costs["adopt"] = len(CountingBucket.asked)
    assert costs == {
        "publish": 14,
        "publish again": 6,
        "publish with an input": 16,
        "adopt again": 7,
        "latest": 5,
        "a version": 3,
        "verify": 3,
        "verify all 4": 17,
        "adopt": 15,
    }


def test_of_many_writers_each_gets_its_own_version(store: Store) -> None:
    refs: list[str] = []

    def write(worker: int) -> None:
        mine = Store(str(store.root), scratch=store.layout.local / str(worker))
        refs.extend(commit(mine, f"{worker}-{turn}").ref for turn in range(5))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(refs)) == 40
    assert store.resolve("model").ref == f"model:v{max(int(ref[7:]) for ref in refs)}"


def test_a_run_commits_a_slot_once_and_a_cut_off_upload_goes_on_under_its_version(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = MemoryBucket.upload

    def fail(self: MemoryBucket, source: Path, key: str, **words: object) -> str:
        if source.name == "b.txt":
            raise StoreError("cut off")
        return real(self, source, key, **words)  # type: ignore[arg-type]

    staged = store.stage("new")
    (staged / "a.txt").write_text("a")
    (staged / "b.txt").write_text("b")
    producer = Producer(run_id="r-1", step="a/b", slot="model")
    monkeypatch.setattr(MemoryBucket, "upload", fail)
    with pytest.raises(StoreError):
        store.commit(staged, name="model", kind="k", producer=producer)
    with pytest.raises(RefError):
        store.resolve("model")
    monkeypatch.setattr(MemoryBucket, "upload", real)
    artifact = store.commit(staged, name="model", kind="k", producer=producer)
    assert (artifact.ref, staged.exists()) == ("model:v1", False)
    assert commit(store, "other", run="r-1").ref == "model:v1"
    assert store.verify_all(deep=True) == (1, [])
    assert list((store.layout.index / "intent").iterdir()) == []


def test_adopting_uploads_once_and_cannot_refer(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "rows"
    source.mkdir()
    (source / "rows.jsonl").write_text("{}\n")
    first = store.adopt(source, kind="raw", name="data")
    assert store.adopt(source, kind="raw", name="data").ref == first.ref == "data:v1"
    assert (store.fetch(first) / "rows.jsonl").read_text() == "{}\n"
    assert list(store.layout.staging.iterdir()) == []
    with pytest.raises(InputError, match="cannot refer to files of this machine"):
        store.adopt(source, kind="raw", name="data", reference=True)


def test_removing_and_collecting(store: Store) -> None:
    first = commit(store, "one")
    second = commit(store, "two", inputs=(first.edge("base"),))
    (first.path / "artifact.json").unlink()
    assert store.collect_garbage(grace_s=3600).finished == ["model:v1"]
    assert store.verify_all(deep=True) == (2, [])
    family = store.read_family()
    assert select(family, wanted=["model:v1"], keep={}).going == ()
    going = select(family, wanted=["model:v2"], keep={}).going
    assert store.remove(going, find_in_use=dict).removed == ["model:v2"]
    with pytest.raises(RefError, match="was removed by"):
        store.resolve("model")
    assert not second.path.exists()
    assert commit(store, "three").ref == "model:v3"


def test_collecting_finishes_what_was_decided_and_drops_an_old_half_upload(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged = store.stage("new")
    (staged / "a.txt").write_text("a")
    (staged / "b.txt").write_text("b")
    real = MemoryBucket.create

    def fail(self: MemoryBucket, key: str, data: bytes) -> bool:
        if key.startswith("index/output"):
            raise StoreError("cut off")
        return real(self, key, data)

    monkeypatch.setattr(MemoryBucket, "create", fail)
    producer = Producer(run_id="r-1", step="a/b", slot="model")
    with pytest.raises(StoreError):
        store.commit(staged, name="model", kind="k", producer=producer)
    monkeypatch.setattr(MemoryBucket, "create", real)
    assert store.collect_garbage(grace_s=3600).finished == ["model:v1"]
    assert store.output_of("r-1", "model") is not None
    # One of which a file never came goes when it is old.
    half = store.layout.version("model", 2)
    (store.layout.claims("model") / "v2").bucket.create(  # type: ignore[attr-defined]
        (store.layout.claims("model") / "v2").key, b""
    )
    half.bucket.put((half / "a.txt").key, b"a")  # type: ignore[attr-defined]
    record = store.resolve("model").record.model_copy(update={"version": 2})
    intent = store.layout.intent(store.layout.output("r-1", "model"), record.ref)
    intent.bucket.put(intent.key, b"{}")  # type: ignore[attr-defined]
    assert store.collect_garbage(grace_s=3600).removed == []
    assert "artifacts/model/v2" in store.collect_garbage(grace_s=-1).removed
    assert store.verify_all(deep=True) == (1, [])


def test_a_bucket_without_conditional_writes_is_refused(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert store.check_root() == []
    assert list(store.root.iterdir()) == []
    monkeypatch.setattr(MemoryBucket, "create", lambda self, key, data: True)
    [problem] = store.check_root()
    assert "does not honour conditional writes" in problem.what


def test_a_record_of_a_newer_version_or_a_damaged_one_is_one_line(store: Store) -> None:
    artifact = commit(store, "one")
    record = artifact.path / "artifact.json"
    bucket = record.bucket  # type: ignore[attr-defined]
    text = record.read_text()
    bucket.put(record.key, text.replace('"k"', '"z"').encode())  # type: ignore[attr-defined]
    with pytest.raises(ArtifactError, match="is not the one that was committed"):
        store.resolve("model:v1")
    body = artifact.record.model_dump(mode="json") | {"schema_version": 2}
    bucket.put(record.key, render_sealed(body).encode())  # type: ignore[attr-defined]
    with pytest.raises(ArtifactError, match=r"a newer nemotron-style wrote the record"):
        store.resolve("model:v1")


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (PermissionError("x"), "the bucket does not do what it is asked for: x"),
        (coded("AccessDenied"), "the bucket refuses these credentials"),
        (coded("InvalidAccessKeyId"), "the bucket refuses these credentials"),
        (coded("ExpiredToken"), "the credentials have expired"),
        (coded("NoSuchBucket"), "there is no such bucket"),
        (coded("QuotaExceeded"), "is full"),
        (coded("XMinioStorageFull"), "is full; make room there, or choose another store"),
        (coded("SlowDown"), "cannot at the moment, also when asked again; run the same command"),
        (coded("InternalError"), "cannot at the moment, also when asked again"),
        (coded("Strange"), "does not do what it is asked for: said Strange"),
    ],
)
def test_what_a_bucket_refuses_is_told_in_a_line(error: Exception, what: str) -> None:
    told = explain(error, "s3://bucket")
    assert isinstance(told, StoreError)
    assert what in str(told)
    assert "\n" not in str(told)


def test_latest_does_not_go_back_when_a_listing_is_late(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for text in ("one", "two", "three"):
        commit(store, text)
    real = MemoryBucket.list

    def late(self: MemoryBucket, prefix: str, **words: Any) -> Iterator[Any]:
        hidden = ("artifacts/model/v2", "artifacts/model/v3")
        return (one for one in real(self, prefix, **words) if not one[0].startswith(hidden))

    monkeypatch.setattr(MemoryBucket, "list", late)
    assert store.resolve("model").ref == "model:v3"
    assert store.resolve("model:v2").ref == "model:v2"
    monkeypatch.setattr(MemoryBucket, "list", lambda self, prefix, **words: iter(()))
    assert commit(store, "four").ref == "model:v4"


class SlowBucket(CountingBucket):
    """Each request takes some 30 ms of a clock that goes on when all wait."""

    clock: ClassVar[Clock]

    def __getattribute__(self, name: str) -> Any:
        if name in REQUESTS:
            SlowBucket.clock.sleep(SlowBucket.clock.chance.uniform(0.02, 0.04))
        return super().__getattribute__(name)


class Clock:
    """The time of several threads, of which one goes on at a time: who has waited long enough."""

    def __init__(self, threads: int) -> None:
        self.now, self.chance = 0.0, random.Random(7)
        self._awake, self._order = threads, itertools.count()
        self._sleepers: list[tuple[float, int, threading.Event]] = []
        self._lock = threading.Lock()

    def sleep(self, seconds: float) -> None:
        """Return when it is that much later."""
        turn = threading.Event()
        with self._lock:
            heapq.heappush(self._sleepers, (self.now + seconds, next(self._order), turn))
        self.leave()
        turn.wait()

    def leave(self) -> None:
        """Let another go on."""
        with self._lock:
            self._awake -= 1
            if not self._awake and self._sleepers:
                self.now, _, turn = heapq.heappop(self._sleepers)
                self._awake = 1
                turn.set()


def test_many_writers_of_one_name_are_not_refused_all_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone each of them makes 14 requests for a publish; all at once they made 53."""
    clients, publishes = 32, 2
    clock = SlowBucket.clock = Clock(clients)
    monkeypatch.setitem(location.BUCKETS, "memory", SlowBucket)
    monkeypatch.setattr(claim, "sleep", clock.sleep)
    monkeypatch.setattr(claim, "monotonic", lambda: clock.now)
    monkeypatch.setattr(claim, "random", clock.chance)
    url, refs = f"memory://{uuid.uuid4().hex}", []

    def write(number: int) -> None:
        store = Store(url, scratch=tmp_path / str(number))
        try:
            clock.sleep(number / 1000)
            for turn in range(publishes):
                staged = store.stage("new")
                (staged / "weights").write_text(f"{number}-{turn}")
                refs.append(store.commit(staged, name="model", kind="k").ref)
        finally:
            clock.leave()

    SlowBucket.asked.clear()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(write, range(clients)))
    assert sorted(int(ref[7:]) for ref in refs) == list(range(1, clients * publishes + 1))
    assert len(SlowBucket.asked) / len(refs) < 20
