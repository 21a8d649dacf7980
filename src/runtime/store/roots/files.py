"""The file operations of a store, on whichever root it has: a folder, or a bucket.

For a folder they are those of :mod:`~nemotron_style.runtime.atomic`. In a bucket an object appears
whole by itself, exclusive creation is S3's conditional write, a folder is what its objects' names
have in common, and nothing can be renamed: what would be renamed away is removed, the record first.
"""

from __future__ import annotations

import os
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from nemotron_style.runtime import atomic
from nemotron_style.runtime.store.roots.object_path import ObjectPath, number_of
from nemotron_style.runtime.store.roots.transfer import send_tree


def on_disk(path: Path) -> bool:
    """Whether a path is one of this machine, which ``open`` and ``os`` take."""
    return not isinstance(path, ObjectPath)


def write_text(path: Path, text: str, *, scratch: Path, durable: bool = True) -> None:
    """:func:`atomic.write_text`."""
    if isinstance(path, ObjectPath):
        path.bucket.put(path.key, text.encode())
    else:
        atomic.write_text(path, text, scratch=scratch, durable=durable)


def create_text(path: Path, text: str, *, scratch: Path) -> bool:
    """:func:`atomic.create_text`."""
    if isinstance(path, ObjectPath):
        return path.bucket.create(path.key, text.encode())
    return atomic.create_text(path, text, scratch=scratch)


def create_empty(path: Path) -> bool:
    """:func:`atomic.create_empty`."""
    if isinstance(path, ObjectPath):
        return path.bucket.create(path.key, b"")
    return atomic.create_empty(path)


def lexists(path: Path) -> bool:
    """Whether a file is there, be it a broken link."""
    return path.is_file() if isinstance(path, ObjectPath) else os.path.lexists(path)


def place_tree(staged: Path, directory: Path) -> dict[str, int] | None:
    """Put a staged tree in its place; None when something is there that is not of this tree.

    Of files that are no longer the same on the disk, by path, the time (ns) that ``lstat`` gives.
    """
    if isinstance(directory, ObjectPath):
        sent = send_tree(staged, directory)
        return {path: number_of(tag) for path, tag in sent.items()}
    return {} if atomic.move_dir(staged, directory) else None


def remove_visible(directory: Path, scratch: Path, hint: str, *, first: str) -> Path | None:
    """Take a directory from its place in one step, to be removed: where it is now, if anywhere.

    In a bucket the object called ``first`` goes before the others. Raises FileNotFoundError when
    the directory is gone.
    """
    if not isinstance(directory, ObjectPath):
        atomic.make_dir(scratch)
        aside = atomic.unique_path(scratch, hint)
        os.rename(directory, aside)
        return aside
    keys = [path.key for path, _state in directory.walk_files()]
    if not keys:
        raise FileNotFoundError(str(directory))
    directory.bucket.delete([(directory / first).key])
    directory.bucket.delete(keys)
    return None


def move_text(source: Path, target: Path) -> None:
    """Rename a file; a reader who looks at ``source`` first sees one of them at any moment.

    Raises FileNotFoundError when ``source`` is gone.
    """
    if isinstance(source, ObjectPath) and isinstance(target, ObjectPath):
        target.bucket.put(target.key, source.read_bytes())
        source.unlink(missing_ok=True)
        return
    atomic.make_dir(target.parent)
    os.rename(source, target)


def remove_tree(path: Path) -> None:
    """:func:`atomic.remove_tree`."""
    if isinstance(path, ObjectPath):
        path.bucket.delete([each.key for each, _state in path.walk_files()])
    else:
        atomic.remove_tree(path)


def sync(path: Path) -> None:
    """:func:`atomic.sync`; an object that was written is durable."""
    if not isinstance(path, ObjectPath):
        atomic.sync(path)


def make_dir(path: Path) -> None:
    """:func:`atomic.make_dir`; a bucket has no folders of its own."""
    if not isinstance(path, ObjectPath):
        atomic.make_dir(path)


def read_clock(folder: Path) -> float:
    """:func:`atomic.read_clock`: what time it is where the store is."""
    if not isinstance(folder, ObjectPath):
        return atomic.read_clock(folder)
    probe = folder / f"clock-{uuid.uuid4().hex}"
    probe.bucket.put(probe.key, b"")
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def last_change(path: Path) -> float:
    """:func:`atomic.last_change`."""
    if not isinstance(path, ObjectPath):
        return atomic.last_change(path)
    state = path.bucket.state(path.key)
    newest = [state.changed] if state else []
    newest += [each.st_mtime for _path, each in path.walk_files()]
    return max(newest, default=float("inf"))


def files_under(*roots: Path) -> Iterator[Path]:
    """Everything below the roots that is no directory, by path."""
    for root in roots:
        if isinstance(root, ObjectPath):
            yield from (path for path, _state in root.walk_files())
            continue
        for folder, _names, files in sorted(os.walk(root)):
            yield from (Path(folder, name) for name in sorted(files))


def size_on_disk(*directories: Path) -> int:
    """Bytes that removing these frees: a file that has another name elsewhere keeps its own."""
    names: Counter[tuple[int, int]] = Counter()
    freed = 0
    for directory in directories:
        if isinstance(directory, ObjectPath):
            freed += sum(state.st_size for _path, state in directory.walk_files())
            continue
        is_folder = directory.is_dir() and not directory.is_symlink()
        for path in files_under(directory) if is_folder else [directory]:
            with suppress(FileNotFoundError):  # somebody removes it at this moment
                state = path.lstat()
                names[file := (state.st_dev, state.st_ino)] += 1
                freed += state.st_size if names[file] == state.st_nlink else 0
    return freed
