"""Scalars of TensorBoard's event files, read while another process writes them.

A file is a series of records: the length (8 bytes), its checksum (4), the data, their checksum (4),
all little-endian; a checksum is CRC-32C, masked.  The data are a protobuf message ``Event``, of
which this reads ``step`` (2) and ``summary`` (5), a list (1) of values with ``tag`` (1) and either
``simple_value`` (2) or, as newer writers have it, a ``tensor`` (8) of one number.

Format: TFRecord (``tensorflow/core/lib/io/record_writer.h``), ``event.proto``, ``summary.proto``,
``tensor.proto`` of TensorFlow.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

MOST_BYTES = 64 << 20
"""Of a record. A length above it is damage, not an event."""
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types of protobuf
FLOAT, DOUBLE = 1, 2  # DataType of a tensor

Field = tuple[int, int, int | bytes]
"""Number, wire type, and value of a field: an integer, or bytes for all other wire types."""


class Scalar(NamedTuple):
    """One number that was logged."""

    step: int
    tag: str
    value: float


@dataclass
class EventFile:
    """A file that grows: each :meth:`read` returns what has come since the last one.

    A record that is not whole yet is left for the next time.  At a damaged one reading ends for
    good (``damage`` says where), since nothing tells where the next begins.
    """

    path: Path
    offset: int = 0
    damage: str = ""

    def read(self) -> list[Scalar]:
        """The scalars of the records that are whole and were not returned before."""
        scalars: list[Scalar] = []
        if self.damage or self.path.stat().st_size == self.offset:
            return scalars
        with self.path.open("rb") as file:
            file.seek(self.offset)
            while (record := self._next_record(file)) is not None:
                scalars += parse_event(record)
        return scalars

    def _next_record(self, file: BinaryIO) -> bytes | None:
        """The record where ``file`` stands; None for one that is not whole, or damaged."""
        head = file.read(12)
        if len(head) < 12:
            return None
        (length,) = struct.unpack("<Q", head[:8])
        if head[8:] != checksum(head[:8]) or length > MOST_BYTES:
            self.damage = f"the record at byte {self.offset} has a damaged length"
            return None
        body = file.read(length + 4)
        if len(body) < length + 4:
            return None
        if body[length:] != checksum(body[:length]):
            self.damage = f"the record at byte {self.offset} has damaged data"
            return None
        self.offset += 12 + length + 4
        return body[:length]


def parse_event(message: bytes) -> list[Scalar]:
    """The scalars of an ``Event``; none for one that holds something else."""
    step, values = 0, []
    for number, wire, value in _fields(message):
        if (number, wire) == (2, VARINT):
            step = _signed(int(value))
        elif (number, wire) == (5, BYTES) and isinstance(value, bytes):
            values += [one for n, w, one in _fields(value) if (n, w) == (1, BYTES)]
    scalars = (_parse_value(value) for value in values if isinstance(value, bytes))
    return [Scalar(step, *pair) for pair in scalars if pair]


def _parse_value(message: bytes) -> tuple[str, float] | None:
    tag, number = "", None
    for field_number, wire, value in _fields(message):
        if not isinstance(value, bytes):
            continue
        if (field_number, wire) == (1, BYTES):
            tag = value.decode("utf-8", "replace")
        elif (field_number, wire) == (2, FIXED32):
            (number,) = struct.unpack("<f", value)
        elif (field_number, wire) == (8, BYTES):
            number = _parse_tensor(value)
    return None if number is None else (tag, number)


def _parse_tensor(message: bytes) -> float | None:
    """The number of a tensor of one float or double, given as content or as a list of values."""
    kind, data = 0, b""
    for number, wire, value in _fields(message):
        if (number, wire) == (1, VARINT):
            kind = int(value)
        elif number in (4, 5, 6) and isinstance(value, bytes):
            data = value
    form = {FLOAT: "<f", DOUBLE: "<d"}.get(kind)
    if form is None or len(data) != struct.calcsize(form):
        return None
    return float(struct.unpack(form, data)[0])


def _fields(message: bytes) -> Iterator[Field]:
    """The fields of a protobuf message; reading ends at a wire type that is not in use."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        number, wire = key >> 3, key & 7
        if wire == VARINT:
            value, place = _varint(message, place)
            yield number, wire, value
            continue
        if wire == BYTES:
            length, place = _varint(message, place)
        elif wire in (FIXED64, FIXED32):
            length = 8 if wire == FIXED64 else 4
        else:
            return
        yield number, wire, message[place : place + length]
        place += length


def _varint(message: bytes, place: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and the place behind it."""
    number = shift = 0
    while place < len(message):
        byte = message[place]
        number |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            break
    return number, place


def _signed(number: int) -> int:
    return number - (1 << 64) if number >= 1 << 63 else number


def checksum(data: bytes) -> bytes:
    """The masked CRC-32C of ``data``, as a record holds it.

    It is rotated and shifted, so that a checksum over data that hold checksums still tells.
    """
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _make_table() -> list[int]:
    """The remainders of all bytes by the polynomial of CRC-32C, its bits reversed."""
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_TABLE = _make_table()
