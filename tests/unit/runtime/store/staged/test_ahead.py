"""What is hashed while a step still writes, and what only the commit may hash."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nemotron_style.runtime.store.digest import digest_tree, find_files
from nemotron_style.runtime.store.staged import ahead
from nemotron_style.runtime.store.staged.ahead import HashAhead
from nemotron_style.runtime.store.store import Store

OLD = 1_700_000_000


@pytest.fixture(autouse=True)
def _small_files_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "SMALLEST", 1)


@pytest.fixture
def staged(tmp_path: Path) -> Path:
    folder = tmp_path / "store" / "staging" / "1"
    folder.mkdir(parents=True)
    for name in ("one", "two"):
        (folder / name).write_text(name)
        os.utime(folder / name, (OLD, OLD))
    with open(folder / "one", "rb") as file:
        if ahead._has_writer(file.fileno()):
            pytest.skip("this system does not tell who has a file open for writing")
    return folder


def known(staged: Path, hashes: HashAhead) -> set[str]:
    return set(hashes.find(find_files(staged)))


def test_a_commit_takes_what_was_hashed_ahead(
    staged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = digest_tree(staged)[0]
    monkeypatch.setattr(ahead, "PAUSE_S", 0.001)
    with HashAhead(staged) as hashes:
        begun = time.monotonic()
        while len(hashes._hashes) < 2 and time.monotonic() < begun + 60:
            time.sleep(0.001)
        monkeypatch.setattr("hashlib.file_digest", None)  # nobody reads a file again
        artifact = Store(staged.parents[1]).commit(staged, name="m", kind="k", ahead=hashes)
    assert artifact.digest == digest
    monkeypatch.undo()
    assert Store(staged.parents[1]).verify(artifact, deep=True) == []


def rewrite(path: Path) -> None:
    """Other content of the same size, and the time is set back."""
    path.write_text("owt")
    os.utime(path, (OLD, OLD))


@pytest.mark.parametrize("change", [rewrite, Path.touch, lambda path: path.write_text("longer")])
def test_what_changes_later_is_hashed_by_the_commit(
    staged: Path, change: Callable[[Path], object]
) -> None:
    hashes = HashAhead(staged)
    hashes.look()
    change(staged / "two")
    digest = digest_tree(staged)[0]
    assert known(staged, hashes) == {"one"}
    artifact = Store(staged.parents[1]).commit(staged, name="m", kind="k", ahead=hashes)
    assert artifact.digest == digest


def test_what_changes_while_it_is_hashed_does_not_count(
    staged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ahead._has_writer

    def write_then_look(handle: int) -> bool:
        is_written = real(handle)
        (staged / "two").write_text("owt")
        return is_written

    monkeypatch.setattr(ahead, "_has_writer", write_then_look)
    hashes = HashAhead(staged)
    hashes.look()
    assert "two" not in known(staged, hashes)


def test_what_is_open_for_writing_or_was_just_written_is_left_alone(staged: Path) -> None:
    hashes = HashAhead(staged)
    (staged / "new").write_text("new")
    with open(staged / "one", "r+b") as file:
        hashes.look()
    assert known(staged, hashes) == {"two"}
    hashes = HashAhead(staged)
    with open(staged / "one", "r+b") as file:
        mapped = mmap.mmap(file.fileno(), 3)  # it may be written through this, file closed or not
    hashes.look()
    mapped.close()
    assert known(staged, hashes) == {"two"}


def test_links_and_files_that_go_are_passed_over(
    staged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (staged / "link").symlink_to("one")
    (staged / "gone").symlink_to("nothing")
    real = os.open

    def remove_first(path: str, flags: int) -> int:
        if path.endswith("two"):
            os.unlink(path)
        return real(path, flags)

    monkeypatch.setattr(os, "open", remove_first)
    hashes = HashAhead(staged)
    hashes.look()
    assert len(hashes._hashes) == 1


def test_the_end_of_a_run_does_not_wait_for_a_hash(
    staged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "PAUSE_S", 0.0)
    with pytest.raises(KeyboardInterrupt), HashAhead(staged) as hashes:
        raise KeyboardInterrupt
    hashes._thread.join(timeout=60)
    assert not hashes._thread.is_alive()
