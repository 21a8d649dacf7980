"""A file appears whole or not at all, and one of many writers wins: on disks of every sort."""

from __future__ import annotations

import ctypes
import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nemotron_style.runtime import atomic
from nemotron_style.runtime.errors import UsageError

NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
TEXT = "x" * 4096


@pytest.fixture(params=[0, *NO_LINKS], ids=lambda number: errno.errorcode.get(number, "links"))
def disk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder on a disk that has hard links, or that refuses them in one of the known ways."""
    if request.param:
        monkeypatch.setattr(os, "link", refuse(request.param))
    return tmp_path


def refuse(number: int) -> Any:
    def operation(*args: Any, **kwargs: Any) -> None:
        raise OSError(number, os.strerror(number))

    return operation


def test_of_many_that_create_one_file_exactly_one_wins_and_its_text_is_there(disk: Path) -> None:
    for each in range(20):
        path = disk / "keys" / str(each)

        def create(number: int, path: Path = path) -> tuple[bool, int]:
            won = atomic.create_text(path, f"{number}:{TEXT}", scratch=disk / "scratch")
            return won, int(path.read_text().removesuffix(f":{TEXT}"))  # whole at once

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(create, range(8)))
        (winner,) = [number for number, (won, _) in enumerate(answers) if won]
        assert {seen for _, seen in answers} == {winner}
    assert list((disk / "scratch").iterdir()) == []


def test_a_file_that_is_there_is_left_as_it_is(disk: Path) -> None:
    (disk / "key").write_text("first")
    assert not atomic.create_text(disk / "key", "second", scratch=disk / "scratch")
    assert (disk / "key").read_text() == "first"
    assert list((disk / "scratch").iterdir()) == []


@pytest.mark.parametrize("there", [None, errno.EINVAL, errno.ENOSYS])
def test_a_disk_on_which_two_could_win_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, there: int | None
) -> None:
    """A system without the call (``None``), or a disk without it."""
    names = {} if there is None else {"renameat2": lambda *_: ctypes.set_errno(there) or -1}
    monkeypatch.setattr(os, "link", refuse(errno.EPERM))
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: SimpleNamespace(**names))
    with pytest.raises(UsageError, match="keys: this disk has neither hard links nor a rename"):
        atomic.create_text(tmp_path / "keys" / "key", TEXT)
    assert list((tmp_path / "keys").iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_another_error_of_the_disk_is_told_as_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int
) -> None:
    monkeypatch.setattr(os, "link", refuse(number))
    with pytest.raises(OSError, match=os.strerror(number)):
        atomic.create_text(tmp_path / "key", TEXT)
    assert list(tmp_path.iterdir()) == []


def test_a_link_whose_first_answer_the_network_lost_is_ours(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    link = os.link

    def send_twice(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", send_twice)
    assert atomic.create_text(tmp_path / "key", TEXT)
    assert not atomic.create_text(tmp_path / "key", "another")
    assert (tmp_path / "key").read_text() == TEXT


def test_a_disk_that_keeps_folders_without_being_asked_is_believed_files_are_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(os, "fsync", refuse(errno.EINVAL))
    atomic.sync(tmp_path)
    with pytest.raises(OSError, match="Invalid argument"):
        atomic.sync(tmp_path / "file")
