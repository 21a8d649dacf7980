"""What adopting copies, what it refuses, and what it leaves behind when it cannot go on."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import stat
from pathlib import Path
from typing import Any

import fsspec
import pytest

from nemotron_style.runtime.errors import InputError, RefError
from nemotron_style.runtime.store.adoption import bring as bring_module
from nemotron_style.runtime.store.adoption.bring import Ways
from nemotron_style.runtime.store.adoption.source import Entry, open_path
from nemotron_style.runtime.store.record import Artifact
from nemotron_style.runtime.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with one file in it."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "rows.jsonl").write_text("{}\n")
    return folder


def adopt(store: Store, source: Path | str) -> Artifact:
    return store.adopt(source, kind="raw_jsonl", name="data")


def refuse(store: Store, source: Path | str) -> str:
    with pytest.raises(InputError) as caught:
        adopt(store, source)
    assert list(store.artifacts()) == []
    assert not store.layout.staging.is_dir() or not any(store.layout.staging.iterdir())
    return str(caught.value)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# Modes


@pytest.mark.parametrize(("theirs", "ours"), [(0o600, 0o400), (0o640, 0o440), (0o755, 0o555)])
def test_a_copy_is_readable_for_nobody_else(
    store: Store, source: Path, theirs: int, ours: int
) -> None:
    (source / "rows.jsonl").chmod(theirs)
    assert mode(adopt(store, source).path / "rows.jsonl") == ours
    one = store.adopt(source / "rows.jsonl", kind="raw_jsonl", name="one")
    assert mode(one.path / "rows.jsonl") == ours


def test_a_private_folder_stays_private_within_and_at_the_top(store: Store, source: Path) -> None:
    (source / "deep" / "deeper").mkdir(parents=True)
    (source / "deep" / "deeper" / "x").write_text("x")
    (source / "deep").chmod(0o700)
    (source / "deep" / "deeper").chmod(0o750)
    source.chmod(0o711)
    copy = adopt(store, source).path
    assert [mode(copy / each) for each in (".", "deep", "deep/deeper")] == [0o711, 0o700, 0o750]


def test_what_is_being_copied_is_private_until_its_mode_is_known(
    store: Store, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    real = os.fchmod

    def look(handle: int, chosen: int) -> None:
        seen.append(stat.S_IMODE(os.fstat(handle).st_mode))
        real(handle, chosen)

    monkeypatch.setattr(os, "fchmod", look)
    adopt(store, source)
    assert seen[0] == 0o600


# Links, and what is no file


def test_a_link_that_leaves_the_folder_is_refused(
    store: Store, source: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("hunter22")
    (source / "link").symlink_to(tmp_path / "secret")
    assert "link: is a link to" in (told := refuse(store, source))
    assert "outside of the folder; put a copy in its place" in told
    assert "is a link to" in refuse(store, f"file://{source}")
    (source / "link").unlink()
    (source / "around").symlink_to(f"../{source.name}/../secret")
    assert "is a link to" in refuse(store, source)


def test_a_link_over_another_link_that_leaves_the_folder_is_refused(
    store: Store, source: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("hunter22")
    (source / "inner").symlink_to("../secret")
    (source / "outer").symlink_to("inner")
    assert refuse(store, source).count("is a link to") == 2


def test_a_folder_and_a_file_may_be_named_by_a_link(
    store: Store, source: Path, tmp_path: Path
) -> None:
    (tmp_path / "way").symlink_to(source)
    (source / "again").symlink_to("rows.jsonl")
    assert (adopt(store, tmp_path / "way").path / "again").read_text() == "{}\n"
    (tmp_path / "file").symlink_to(source / "rows.jsonl")
    one = store.adopt(tmp_path / "file", kind="raw_jsonl", name="one")
    assert (one.path / "file").read_text() == "{}\n"


def test_a_snapshot_of_a_model_hub_is_adopted(store: Store, tmp_path: Path) -> None:
    hub = tmp_path / "models--org--name"
    (hub / "snapshots" / "c0ffee").mkdir(parents=True)
    (hub / "blobs").mkdir()
    (hub / "blobs" / "1234").write_text("weights")
    (hub / "snapshots" / "c0ffee" / "model.safetensors").symlink_to("../../blobs/1234")
    copy = adopt(store, hub / "snapshots" / "c0ffee").path
    assert (copy / "model.safetensors").read_text() == "weights"
    assert not (copy / "model.safetensors").is_symlink()


def test_loops_devices_pipes_and_sockets_are_refused_at_once(
    store: Store, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source / "loop").symlink_to("loop")
    (source / "back").symlink_to("..")
    (source / "nowhere").symlink_to("absent")
    (source / "zero").symlink_to("/dev/zero")
    os.mkfifo(source / "pipe")
    monkeypatch.chdir(source)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        told = refuse(store, source)
        for name in ("loop", "back", "nowhere", "zero", "pipe", "socket"):
            assert f"{source}/{name}: " in told
        for name in ("loop", "pipe", "socket"):
            assert refuse(store, source / name)
    assert "neither a plain file" in refuse(store, "/dev/zero")


def test_a_folder_that_cannot_be_listed_is_named(
    store: Store, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source / "closed").mkdir()
    real = os.scandir

    def scan(path: str) -> Any:  # root may list anything
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scan)
    assert "closed: cannot be read: Permission denied" in refuse(store, source)


@pytest.mark.parametrize("uri", [True, False])
def test_what_lies_under_the_name_of_the_record_is_refused(
    store: Store, source: Path, *, uri: bool
) -> None:
    (source / "artifact.json").mkdir()
    (source / "artifact.json" / "x").write_text("x")
    if uri:
        memory = fsspec.filesystem("memory")
        memory.pipe({"/poison/a": b"a", "/poison/artifact.json/x": b"x"})
    assert "the name of the record" in refuse(store, "memory://poison" if uri else source)
    assert not store.layout.name("data").exists()
    assert store.collect_garbage(grace_s=-1).skipped == []


# Room


def test_a_copy_that_cannot_fit_is_refused_before_a_byte_is_written(
    store: Store, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")._replace(free=2)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    told = refuse(store, source)
    assert f"store {store.root}: 2 B are free, and a copy of {source} needs 3 B" in told
    memory = fsspec.filesystem("memory")
    memory.pipe({"/big/a": b"aaaa", "/big/b": b"bbbb"})
    assert "2 B are free, and a copy of memory://big needs 8 B" in refuse(store, "memory://big")
    assert not store.root.exists()


def test_what_is_there_already_needs_no_room(
    store: Store, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = adopt(store, source)
    usage = shutil.disk_usage("/")._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert adopt(store, source) == first


def test_a_disk_that_fills_up_meanwhile_is_blamed_and_cleared(
    store: Store, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fill)
        store.layout.staging.mkdir(parents=True)
        told = refuse(store, source)
    assert f"store {store.root}: there is no room for a copy of {source}" in told
    assert "artifacts gc" in told
    assert adopt(store, source).ref == "data:v1"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_what_was_copied_is_removed_when_told_to_stop(
    store: Store, source: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    (source / "second").write_text("x")
    before = signal.getsignal(number)
    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    real, copied = bring_module._copy, []

    def copy_one(*args: Any) -> Any:
        if copied:
            os.kill(os.getpid(), number)
        copied.append(real(*args))
        return copied[-1]

    monkeypatch.setattr(bring_module, "_copy", copy_one)
    try:
        with pytest.raises(KeyboardInterrupt):
            adopt(store, source)
        handler = signal.getsignal(number)
        assert handler in (signal.SIG_DFL, signal.default_int_handler)
    finally:
        signal.signal(number, before)
    assert list(store.layout.staging.iterdir()) == []
    assert list(store.artifacts()) == []


def test_what_nohup_ignores_stays_ignored(store: Store, source: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        adopt(store, source)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


# Without a second copy


def test_a_copy_shares_its_bytes_where_the_file_system_can(
    store: Store, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clones are made as a file system would; reading the source instead would be a copy."""

    def clone(target: int, request: int, given: int) -> None:
        assert request == bring_module.FICLONE
        os.pwrite(target, os.pread(given, 1 << 20, 0), 0)
        os.truncate(source / "rows.jsonl", 0)  # whoever reads the source now gets nothing

    monkeypatch.setattr(bring_module.fcntl, "ioctl", clone)
    artifact = adopt(store, source)
    assert (artifact.path / "rows.jsonl").read_text() == "{}\n"
    assert store.verify(artifact, deep=True) == []
    assert mode(artifact.path / "rows.jsonl") & 0o222 == 0


def refer(store: Store, source: Path | str) -> Artifact:
    return store.adopt(source, kind="raw_jsonl", name="data", reference=True)


def test_what_is_referenced_is_digested_and_not_copied(store: Store, source: Path) -> None:
    (source / "deep").mkdir()
    (source / "deep" / "more.jsonl").write_text("[]\n")
    copied = Store(store.root.parent / "other").adopt(source, kind="raw_jsonl", name="data")
    artifact = refer(store, source)
    assert artifact.digest == copied.digest
    assert (artifact.path / "deep" / "more.jsonl").read_text() == "[]\n"
    plain = [path for path in artifact.path.rglob("*") if path.is_file() and not path.is_symlink()]
    assert [path.name for path in plain] == ["artifact.json"]
    assert mode(source / "rows.jsonl") & 0o200, "the owner's file is left as it is"
    assert refer(store, source) == artifact
    assert store.verify_all(deep=True) == (1, [])
    assert store.by_digest(copied.digest) == [artifact]


def test_a_lone_file_can_be_referenced(store: Store, source: Path) -> None:
    artifact = refer(store, source / "rows.jsonl")
    assert (artifact.path / "rows.jsonl").read_text() == "{}\n"
    assert store.verify(artifact, deep=False) == []


@pytest.mark.parametrize("deep", [True, False])
def test_a_source_that_changed_or_is_gone_is_told(store: Store, source: Path, deep: bool) -> None:
    artifact = refer(store, source)
    (source / "rows.jsonl").write_text("[]\n")
    [problem] = store.verify(artifact, deep=deep)
    assert (problem.key, problem.what) == ("rows.jsonl", "has other content")
    assert f"put back what was at {source}" in problem.fix
    (source / "rows.jsonl").unlink()
    [problem] = store.verify(artifact, deep=deep)
    assert f"refers to {source / 'rows.jsonl'}, which is not there" in problem.what
    (source / "rows.jsonl").write_text("{}\n")
    assert store.verify(artifact, deep=deep) == []


def test_what_is_removed_of_a_reference_are_its_links(store: Store, source: Path) -> None:
    artifact = refer(store, source)
    store.remove([artifact.record], find_in_use=dict)
    assert list(store.artifacts()) == []
    assert (source / "rows.jsonl").read_text() == "{}\n"
    assert store.verify_all(deep=True)[1] == []
    with pytest.raises(RefError, match=r"artifacts adopt .* --reference"):
        store.resolve(artifact.ref)


def test_a_uri_cannot_be_referenced(store: Store) -> None:
    with pytest.raises(InputError, match="cannot be adopted by reference; give the path"):
        refer(store, "memory://bucket/rows.jsonl")


def link(store: Store, source: Path, **how: Any) -> tuple[Artifact, Ways]:
    ways = Ways()
    artifact = store.adopt(source, kind="raw_jsonl", name="data", link=True, ways=ways, **how)
    return artifact, ways


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch, source: Path) -> Path:
    """The source with a file that counts as large, and a small one."""
    monkeypatch.setattr(bring_module, "SMALLEST_LINK", 1000)
    (source / "weights").write_bytes(b"w" * 2000)
    return source


def test_a_large_file_on_the_stores_disk_is_linked_and_read_only_and_it_is_said(
    store: Store, large: Path
) -> None:
    artifact, ways = link(store, large)
    assert os.path.samefile(artifact.path / "weights", large / "weights")
    assert not os.path.samefile(artifact.path / "rows.jsonl", large / "rows.jsonl")
    assert mode(large / "weights") & 0o222 == 0
    assert mode(large / "rows.jsonl") & 0o200
    assert ways.bytes == {"copied": 3, "hard links": 2000}
    assert "read-only now, at their source too" in ways.describe()
    assert store.verify_all(deep=True) == (1, [])
    again, nothing = link(store, large)
    assert (again, nothing.bytes) == (artifact, {})


def test_a_large_file_is_cloned_rather_than_linked_where_the_file_system_can(
    store: Store, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def clone(target: int, request: int, given: int) -> None:
        os.pwrite(target, os.pread(given, 1 << 20, 0), 0)

    monkeypatch.setattr(bring_module.fcntl, "ioctl", clone)
    artifact, ways = link(store, large)
    assert ways.bytes == {"clones": 2003}
    assert not os.path.samefile(artifact.path / "weights", large / "weights")
    assert mode(large / "weights") & 0o200
    assert store.verify_all(deep=True) == (1, [])


def test_a_linked_file_that_somebody_writes_all_the_same_is_found(
    store: Store, large: Path
) -> None:
    artifact, _ = link(store, large)
    (large / "weights").chmod(0o644)
    (large / "weights").write_bytes(b"x" * 2000)
    [problem] = store.verify(artifact, deep=False)
    assert (problem.key, problem.what) == ("weights", "has other content")


def test_what_cannot_be_linked_is_copied(
    store: Store, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EXDEV, "another disk")

    monkeypatch.setattr(bring_module.os, "link", refuse)
    entry = open_path(str(large)).entries[1]
    assert not bring_module._link(entry, store.stage("x") / "weights")
    assert mode(large / "weights") & 0o200, "its owner may still write it"


def test_without_being_asked_nothing_is_linked(store: Store, large: Path) -> None:
    artifact = adopt(store, large)
    assert not os.path.samefile(artifact.path / "weights", large / "weights")
    assert mode(large / "weights") & 0o200


def test_a_file_that_changes_between_its_hash_and_its_link_is_refused(
    store: Store, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = bring_module._link

    def write_first(entry: Entry, target: Path) -> bool:
        assert entry.place
        entry.place.write_bytes(b"x" * 2001)
        return real(entry, target)

    monkeypatch.setattr(bring_module, "_link", write_first)
    with pytest.raises(InputError, match="weights changed while it was read"):
        link(store, large)
    assert list(store.artifacts()) == []
