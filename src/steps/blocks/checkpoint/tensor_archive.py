"""What ``torch.save`` writes for one tensor, looked at before torch opens it.

torch reads it with ``weights_only``, so it runs no code. But its pickle may hold tuples of tuples
of the same tuples, whose hash never ends, and its zip may unpack to a thousand times its size.
"""

from __future__ import annotations

import io
import os
import pickletools
import zipfile
from pathlib import Path

MAX_PICKLE_BYTES = 4096  # that of a tensor has about 160
MAX_MEMBERS = 32


class ArchiveError(ValueError):
    """The archive is not what ``torch.save`` writes; the message says what was met."""


def check_archive(path: Path, offset: int, size: int) -> None:
    """Raise ArchiveError unless these ``size`` bytes of a file are the archive of a plain tensor.

    What a damaged zip or pickle makes :mod:`zipfile` and :mod:`pickletools` raise passes through.
    """
    with (
        open(path, "rb", buffering=0) as file,
        zipfile.ZipFile(FilePart(file, offset, size)) as archive,
    ):
        members = archive.infolist()
        unpacked = sum(member.file_size for member in members)
        packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
        if packed or unpacked > size or len(members) > MAX_MEMBERS:
            raise ArchiveError("an archive is compressed, or holds more than it has room for")
        pickles = [member for member in members if member.filename.endswith("data.pkl")]
        if len(pickles) != 1 or pickles[0].file_size > MAX_PICKLE_BYTES:
            raise ArchiveError("an archive does not hold the one short pickle of a tensor")
        for opcode, _, _ in pickletools.genops(archive.read(pickles[0])):
            if "GET" in opcode.name or opcode.name == "DUP":
                raise ArchiveError(f"a tensor's pickle uses a value twice, by {opcode.name}")


class FilePart(io.RawIOBase):
    """A part of a file as a file of its own."""

    def __init__(self, file: io.FileIO, offset: int, size: int) -> None:
        self._file, self._offset, self._size = file, offset, size
        self._position = 0

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        self._file.seek(self._offset + self._position)
        length = max(0, min(len(buffer), self._size - self._position))
        read = self._file.readinto(memoryview(buffer)[:length])
        self._position += read
        return read

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True
