"""Inputs that are URIs: a dry run asks nothing, a run fetches what it has not fetched before."""

from __future__ import annotations

import hashlib
import socket
from collections import Counter
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from nemotron_style.runtime.cli import main
from nemotron_style.runtime.errors import InputError
from nemotron_style.runtime.planning import planner
from nemotron_style.runtime.planning.inputs import resolve_ref
from nemotron_style.runtime.store.adoption.source import open_uri

URI = "bucket://data/sack.txt"
GIVEN = ("-i", f"input={URI}")


class Bucket(MemoryFileSystem):
    """An object store that counts what is asked of it, and may give out ETags."""

    protocol = "bucket"
    store: ClassVar[dict[str, Any]] = {}
    calls: ClassVar[Counter[str]] = Counter()
    tag = staticmethod(lambda content: hashlib.md5(content).hexdigest())

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("bucket://", "memory://")))

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        self.calls["info"] += 1
        info = dict(super().info(path, **options))
        if info["type"] == "file" and (tag := self.tag(self.store[info["name"]].getvalue())):
            info["ETag"] = tag
        return info

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        self.calls["read" if mode == "rb" else "write"] += 1
        return super()._open(path, mode, **options)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Bucket:
    fsspec.register_implementation("bucket", Bucket, clobber=True)
    files = fsspec.filesystem("bucket", skip_instance_cache=True)
    monkeypatch.setattr(Bucket, "store", {})
    files.pipe("/data/sack.txt", b"white\n")
    monkeypatch.setattr(Bucket, "calls", Counter())
    assert isinstance(files, Bucket)
    return files


def test_a_dry_run_asks_nothing_and_writes_nothing(
    mill: Any, bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    before = mill.files()
    assert main(["steps", "run", "mill/bake", *GIVEN, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert f"run     mill/bake (default): {URI} is fetched when it is run" in shown
    assert f"adopt   {URI} as sack (flour)" in shown
    assert not bucket.calls
    assert mill.files() == before


def test_content_is_fetched_once_and_again_when_it_changed(
    mill: Any, bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["steps", "run", "mill/bake", *GIVEN]) == 0
    assert main(["steps", "run", "mill/bake", *GIVEN, "steps=3"]) == 0
    assert bucket.calls["read"] == 1
    assert len(list(mill.store.artifacts("sack"))) == 1
    bucket.calls.clear()
    capsys.readouterr()
    assert main(["steps", "run", "mill/bake", *GIVEN, "--dry-run"]) == 0
    assert "sack:v1  as it was at 2" in (shown := capsys.readouterr().out)
    assert "reuse   mill/bake" in shown
    assert not bucket.calls
    bucket.pipe("/data/sack.txt", b"brown\n")
    bucket.calls.clear()
    assert main(["steps", "run", "mill/bake", *GIVEN]) == 0
    assert bucket.calls["read"] == 1
    assert (mill.store.resolve("sack").path / "sack.txt").read_text() == "brown\n"
    assert len(list(mill.store.artifacts("mill-bake-default"))) == 3


@pytest.mark.parametrize("tag", ["", 'W/"1"'])
def test_what_nothing_identifies_is_read_again(
    mill: Any, bucket: Bucket, tag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bucket, "tag", staticmethod(lambda content: tag))
    for text in (b"white\n", b"brown\n"):
        bucket.pipe("/data/sack.txt", text)
        assert main(["steps", "run", "mill/bake", *GIVEN]) == 0
    assert [one.record.version for one in mill.store.artifacts("sack")] == [2, 1]


@pytest.mark.parametrize("method", ["isfile", "info", "_open"])
def test_whatever_a_file_system_raises_is_one_message(
    mill: Any,
    bucket: Bucket,
    method: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class NoCredentialsError(Exception):
        """As botocore has it: no OSError."""

    def fail(*args: Any, **options: Any) -> Any:
        raise NoCredentialsError("Unable to locate credentials")

    monkeypatch.setattr(Bucket, method, fail)
    assert main(["steps", "run", "mill/bake", *GIVEN]) == 2
    shown = capsys.readouterr().err
    assert f"{URI}: cannot be read: NoCredentialsError: Unable to locate" in shown
    assert not any(mill.store.artifacts())


def test_what_comes_after_an_unfetched_input_is_not_known_either(mill: Any, bucket: Bucket) -> None:
    source = f"{{step: mill/grind, slot: sack, overrides: {{mill.input_path: '{URI}'}}}}"
    mill.write("manifests/mill/bake/far.yaml", f"inputs: {{input: {source}}}\n")
    pipeline = mill.compile("mill/bake", config="far")
    assert [URI in run.decision.reason for run in pipeline.runs] == [True, True]
    assert not bucket.calls


def test_a_file_uri_is_a_path(mill: Any) -> None:
    path = mill.write("elsewhere/sack.txt", "white\n")
    plans = [
        mill.compile("mill/bake", inputs=(f"input={ref}",)) for ref in (path, f"file://{path}")
    ]
    assert plans[0].target.plan == plans[1].target.plan


def test_content_that_changes_between_plan_and_adoption_is_refused(
    mill: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = mill.write("elsewhere/sack.txt", "white\n")

    def change_after(ref: str, *args: Any, **options: Any) -> Any:
        resolved = resolve_ref(ref, *args, **options)
        path.write_text("brown\n")
        return resolved

    monkeypatch.setattr(planner, "resolve_ref", change_after)
    assert main(["steps", "run", "mill/bake", "-i", f"input={path}"]) == 2
    assert "changed while the run was being planned" in capsys.readouterr().err


def test_an_address_where_nothing_answers_is_not_an_empty_folder() -> None:
    with socket.socket() as held:  # bound, so that nobody else listens there
        held.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{held.getsockname()[1]}/sack.txt"
        with pytest.raises(
            InputError, match=r"cannot be read: Cannot connect to host 127\.0\.0\.1"
        ):
            open_uri(uri)


def test_an_address_with_nothing_behind_it_says_so(bucket: Bucket) -> None:
    with pytest.raises(InputError, match="cannot be read: there is nothing"):
        open_uri("bucket://data/nowhere.txt")
