"""File operations that are safe against a crash: whatever appears is whole, or it is absent.

Everything that must survive the death of a process or of the machine goes through here. A
function has made its work durable (fsync) when it returns, unless it says otherwise. They stay
this few so that an object store could take the place of the local disk.

A folder with the setgid bit that its group may write (``chmod g+ws``) is *shared*: whatever is
made in it, the group may use as well, whichever umask the maker has.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
import stat
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nemotron_style.runtime.errors import Problem, UsageError

_NO_SUCH_CALL = (errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_NO_LINKS = (*_NO_SUCH_CALL, errno.EPERM, errno.EMLINK, errno.EXDEV)
_AT_FDCWD, _RENAME_NOREPLACE = -100, 1  # of Linux: paths from the working directory; never replace


def write_text(path: Path, text: str, *, scratch: Path | None = None, durable: bool = True) -> None:
    """Put ``text`` at ``path``, replacing what is there in one step.

    A reader sees the old text or the new one. The text is written aside first: beside ``path``,
    or in ``scratch``, where the store keeps what is not committed yet; what comes out of there is
    read-only. ``durable=False`` leaves out fsync, for what is worthless after a power cut.
    """
    make_dir(path.parent)
    os.replace(_write_aside(path, text, scratch=scratch, durable=durable), path)
    if durable:
        sync(path.parent)


def write_json(path: Path, value: Mapping[str, Any], *, durable: bool = True) -> None:
    """Put ``value`` at ``path`` as JSON, its keys in their order."""
    write_text(path, json.dumps(value, indent=2) + "\n", durable=durable)


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object at ``path``, or None when there is none that can be read."""
    try:
        return parse_object(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None


def read_facts(path: Path) -> dict[str, Any] | None:
    """The JSON object at ``path``, or None when there is none.

    Raises ``OSError`` when there is one that cannot be read: whoever concludes from a file that is
    missing must not take one for missing that somebody else owns.
    """
    try:
        return parse_object(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError):
        return None


def parse_object(text: str) -> dict[str, Any] | None:
    """The JSON object that ``text`` is, or None when it is none, or is nested without an end."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return dict(value) if isinstance(value, dict) else None


def create_text(path: Path, text: str, *, scratch: Path | None = None) -> bool:
    """Create ``path`` with ``text`` in it; False when it exists: exactly one caller wins.

    Raises UsageError on a disk that has no operation by which one caller could win.
    """
    make_dir(path.parent)
    aside = _write_aside(path, text, scratch=scratch)
    try:
        _give_name(aside, path)
    except FileExistsError:
        return False
    finally:
        aside.unlink(missing_ok=True)
    sync(path.parent)
    return True


def _give_name(aside: Path, path: Path) -> None:
    """Let the file ``aside`` be found at ``path``; raises FileExistsError when one is there.

    An exclusive create followed by a write would show the name without its text to a reader, and
    for good after a crash between the two. So the whole file gets a second name. FAT, exFAT and
    most of FUSE have no hard links; there it is renamed by the call that never replaces.
    """
    try:
        os.link(aside, path)
    except FileExistsError:
        # NFS: the answer to the first request was lost, and the second found the link made.
        if not os.path.samestat(aside.lstat(), path.lstat()):
            raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _rename_exclusively(aside, path)


def _rename_exclusively(source: Path, target: Path) -> None:
    """Rename a file; raises FileExistsError, in place of replacing, when ``target`` exists."""
    import ctypes

    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # Linux
    if rename and not rename(
        _AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE
    ):
        return
    number = ctypes.get_errno() if rename else errno.ENOSYS
    if number not in _NO_SUCH_CALL:
        raise OSError(number, os.strerror(number), str(source), None, str(target))
    what = "this disk has neither hard links nor a rename that never replaces, so that of several "
    what += "writers more than one could win"
    fix = "choose a folder on another disk (a bucket that is mounted here: its own address)"
    raise UsageError(Problem(where=str(target.parent), what=what, fix=fix))


def create_empty(path: Path) -> bool:
    """Create an empty file; False when it exists: exactly one caller wins."""
    make_dir(path.parent)
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    except FileExistsError:
        return False
    sync(path.parent)
    return True


def make_dir(path: Path) -> None:
    """Create ``path`` and its missing parents, each durable in the one above it."""
    missing = []
    while not path.is_dir():
        # Asked twice, since another process may have made it after the first look.
        if path.exists() and not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
        missing.append(path)
        path = path.parent
    for directory in reversed(missing):
        with contextlib.suppress(FileExistsError):
            directory.mkdir()
            share(directory)
        sync(directory.parent)


def group_rights(folder: Path) -> int:
    """The mode bits that a shared ``folder`` hands on to what is made in it; else 0."""
    mode = folder.stat().st_mode
    return 0o2070 if mode & stat.S_ISGID and mode & stat.S_IWGRP else 0


def share(directory: Path) -> None:
    """Give a new directory to the group of the shared one that it lies in."""
    if rights := group_rights(directory.parent):
        directory.chmod(stat.S_IMODE(directory.stat().st_mode) | rights)


def loosen_umask(folder: Path) -> None:
    """Let all that this process and its children make be shared, when ``folder`` is."""
    if group_rights(next(each for each in (folder, *folder.parents) if each.is_dir())):
        os.umask(os.umask(0o077) & ~0o070)


def nearest_folder(path: Path) -> Path:
    """``path``, or the nearest folder above it that exists."""
    return next(each for each in (path, *path.parents) if each.exists())


def unwritable(folders: Iterable[Path]) -> list[Path]:
    """Of the folders, or the nearest above them that exist, those that we may not write in."""
    return [
        folder
        for folder in dict.fromkeys(map(nearest_folder, folders))
        if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK))
    ]


def move_dir(source: Path, target: Path) -> bool:
    """Rename a directory to a name not in use; False when something is there already."""
    make_dir(target.parent)
    if target.exists():  # rename would replace an empty directory
        return False
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # another process was faster
            return False
        raise
    for parent in {target.parent, source.parent}:
        sync(parent)
    return True


def remove_tree(path: Path) -> None:
    """Remove a directory that nobody refers to; one that is partly or wholly gone is no error."""
    shutil.rmtree(path, ignore_errors=True)


def read_clock(folder: Path) -> float:
    """What time it is for the file system of ``folder``, in seconds since the epoch.

    A server's clock may be hours from ours, and times of files are its. The time of ``folder``
    is set to now, which needs no room, so it works on a full disk too.
    """
    try:
        os.utime(folder)
    except OSError as error:  # it does not say of which path
        raise OSError(error.errno, error.strerror, str(folder)) from error
    return folder.stat().st_mtime


def last_change(path: Path) -> float:
    """When anything in ``path`` was last written, by the clock of :func:`read_clock`.

    Infinity when it is gone or is not ours to look into: its owner is at work.
    """

    def stop(error: OSError) -> None:
        raise error

    try:
        newest = path.lstat().st_mtime
        for folder, names, files in os.walk(path, onerror=stop):
            for name in (*names, *files):
                newest = max(newest, Path(folder, name).lstat().st_mtime)
    except NotADirectoryError:
        return newest
    except (FileNotFoundError, PermissionError):
        return math.inf
    return newest


def unique_path(folder: Path, hint: str) -> Path:
    """A path in ``folder`` that no other process uses; it is not created."""
    return folder / f"{hint}-{uuid.uuid4().hex}"


def sync(path: Path) -> None:
    """Force a file's bytes, or a directory's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # A file system that cannot be asked to keep a directory (some of FUSE's) does so by itself.
        if error.errno not in _NO_SUCH_CALL or not stat.S_ISDIR(os.fstat(handle).st_mode):
            raise
    finally:
        os.close(handle)


def sync_tree(root: Path) -> None:
    """Force every file and directory under ``root`` to the disk."""
    for directory, _, names in os.walk(root):
        for name in names:
            sync(Path(directory, name))
        sync(Path(directory))


def _write_aside(path: Path, text: str, *, scratch: Path | None, durable: bool = True) -> Path:
    if scratch:
        make_dir(scratch)
    aside = unique_path(scratch, "text") if scratch else unique_path(path.parent, f".{path.name}")
    handle = os.open(aside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    with os.fdopen(handle, "w", encoding="utf-8", newline="") as stream:
        stream.write(text)
        stream.flush()
        if scratch:
            os.fchmod(stream.fileno(), 0o444)
        elif rights := group_rights(aside.parent):
            mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
            os.fchmod(stream.fileno(), mode | (rights & 0o060))
        if durable:
            os.fsync(stream.fileno())
    return aside
