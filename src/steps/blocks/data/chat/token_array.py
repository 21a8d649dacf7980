"""Tokens of rows as they are kept in memory: four bytes each, where a list of ints takes forty."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence


def token_array(ids: Iterable[int]) -> Sequence[int]:
    """Token ids as an array of int32; slices of it are arrays, its items are plain ints."""
    return array("i", ids)


def mark_array(marks: Iterable[bool]) -> Sequence[bool]:
    """Marks on tokens as an array of one byte each, 1 where a token is marked."""
    return array("b", marks)  # type: ignore[return-value]  # 0 and 1 are used as truth values
