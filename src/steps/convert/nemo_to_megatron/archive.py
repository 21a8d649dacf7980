"""Where the files of a model lie: in a folder, or in the tar that NeMo calls ``.nemo``.

The members of a plain tar are read where they are, so that a model needs no second copy on disk.
Only one that is compressed has to be unpacked. A tar may name any path, and links and devices, and
may promise more than it holds: none of that is followed.
"""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from nemotron_style.runtime.errors import InputError, Problem, raise_all
from nemotron_style.runtime.store.record import RECORD_NAME

MOST_MEMBERS = 1_000_000  # one a piece of a tensor, at most
MOST_GROWTH = 100  # of compressed content; weights shrink by a third
SHOWN = 5
_CHUNK = 1 << 20
_GZIP = b"\x1f\x8b"
_LATEST = "latest_checkpointed_iteration.txt"


@dataclass(frozen=True)
class Span:
    """A file, or a part of one that is a file in an archive."""

    path: Path
    offset: int
    size: int

    def read(self, most: int) -> bytes:
        """All bytes of it. Raises ValueError where there are more than ``most``."""
        if self.size > most:
            raise ValueError(f"is larger than {most:,} bytes")
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model by their paths in it; ``where`` is what a user calls it."""

    where: str
    spans: dict[str, Span]

    def inside(self, folder: str) -> dict[str, Span]:
        """The files in a folder and below it, by their paths in that."""
        start = f"{folder}/" if folder else ""
        found = {name: span for name, span in self.spans.items() if name.startswith(start)}
        return {name.removeprefix(start): span for name, span in found.items()}

    def text(self, name: str, *, most: int = _CHUNK) -> str:
        """A file as text. Raises InputError where it is none, or too large."""
        try:
            return self.spans[name].read(most).decode("utf-8")
        except (OSError, ValueError) as error:
            problem = Problem(where=self.where, key=name, what=f"cannot be read: {error}")
            raise InputError(problem) from error


def is_compressed(path: Path) -> bool:
    """Whether the files of a model can only be seen by unpacking them."""
    file = _lone_file(path)
    return file is not None and _starts_with(file, _GZIP)


def open_files(path: Path, *, scratch: Path | None = None) -> ModelFiles:
    """The files at ``path``: a folder, a tar, or a folder with one tar in it.

    A compressed tar is unpacked into ``scratch``. Raises InputError for a tar that is damaged or
    holds anything but files and folders below its root.
    """
    file = _lone_file(path)
    if file is None:
        return ModelFiles(str(path), _list_folder(_latest_iteration(path)))
    try:
        if not _starts_with(file, _GZIP):
            with tarfile.open(file, "r:") as archive:
                return ModelFiles(str(file), _list_members(archive, file))
        assert scratch is not None
        _unpack(file, scratch)
    except (tarfile.TarError, EOFError, OSError) as error:
        what = "is neither a folder nor a tar that can be read"
        raise InputError(Problem(where=str(file), what=what, got=str(error))) from error
    return ModelFiles(str(file), _list_folder(scratch))


def _lone_file(path: Path) -> Path | None:
    """The file that ``path`` is, or the only one in it, as an adopted file is stored."""
    if path.is_file():
        return path
    found = list(path.iterdir()) if path.is_dir() else []
    inside = [file for file in found if file.name != RECORD_NAME]
    return inside[0] if len(inside) == 1 and inside[0].is_file() else None


def _starts_with(file: Path, start: bytes) -> bool:
    with file.open("rb") as stream:
        return stream.read(len(start)) == start


def _latest_iteration(path: Path) -> Path:
    """The folder of the last iteration, where ``path`` is one that Megatron-LM trains into."""
    marker = path / _LATEST
    if not marker.is_file():
        return path
    text = marker.read_text(encoding="utf-8", errors="replace").strip()[:80]
    name = f"iter_{int(text):07d}" if text.isdecimal() else text
    if name != "release" and not text.isdecimal():
        allowed = "the number of an iteration, or release"
        raise InputError(Problem(where=str(marker), what="names none", got=text, allowed=allowed))
    if not (path / name).is_dir():
        what = f"names an iteration whose folder {name} is not there"
        raise InputError(Problem(where=str(marker), what=what, got=text))
    return path / name


def _list_folder(path: Path) -> dict[str, Span]:
    files = [file for file in sorted(path.rglob("*")) if file.is_file()]
    return {file.relative_to(path).as_posix(): Span(file, 0, file.stat().st_size) for file in files}


def _list_members(archive: tarfile.TarFile, file: Path) -> dict[str, Span]:
    end = file.stat().st_size
    spans: dict[str, Span] = {}
    problems: list[Problem] = []
    for member, name, fault in _check_members(archive):
        if not fault and name in spans:
            fault = "is there twice"
        if not fault and member.offset_data + member.size > end:
            fault = "ends behind the end of the file, which was cut off"
        if fault:
            problems.append(Problem(where=str(file), key=member.name[:200], what=fault))
        elif member.isfile():
            spans[name] = Span(file, member.offset_data, member.size)
    raise_all(InputError, problems[:SHOWN])
    return spans


def _check_members(archive: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, str, str]]:
    """Every member with its path below the root, and what is wrong with it."""
    for number, member in enumerate(archive):
        if number == MOST_MEMBERS:
            yield member, "", f"is one more than the {MOST_MEMBERS:,} members that a model has"
            return
        path = PurePosixPath(member.name)
        fault = ""
        if path.is_absolute() or ".." in path.parts or "\\" in member.name or "\0" in member.name:
            fault = "points outside of the archive"
        elif not (member.isdir() or member.isreg()) or member.issparse():
            fault = "is a link, a device or another thing that no model has"
        yield member, str(path), fault


def _unpack(file: Path, target: Path) -> None:
    """Write the members of a compressed tar below ``target``, which is emptied before."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    left = min(MOST_GROWTH * file.stat().st_size, shutil.disk_usage(target).free)
    with tarfile.open(file, "r|gz") as archive:
        for member, name, fault in _check_members(archive):
            left -= member.size
            if not fault and left < 0:
                fault = f"does not fit: it grows by more than {MOST_GROWTH} times, or beyond the "
                fault += "room on the disk"
            content = None if fault or member.isdir() else archive.extractfile(member)
            if content is not None and (target / name).exists():
                fault = "is there twice"
            if fault:
                raise InputError(Problem(where=str(file), key=member.name[:200], what=fault))
            if content is not None:
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                with (target / name).open("xb") as written:
                    shutil.copyfileobj(content, written, _CHUNK)
