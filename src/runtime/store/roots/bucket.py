"""What a store asks of a bucket: the few operations in which its promises are kept.

:meth:`Bucket.create` is the one that decides: of any number of callers exactly one gets True. A
name that a listing shows, or does not show, decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nemotron_style.runtime.store.roots.progress import Progress


@dataclass(frozen=True)
class ObjectState:
    """Size in bytes, time of the last write (s since the epoch, the server's clock), and a tag.

    The tag is another one after a write of other bytes.
    """

    size: int
    changed: float
    tag: str


class Bucket(Protocol):
    """The objects below one URL, by key (relative, with ``/``).

    Raises StoreError, with one line for a user, when the bucket is not there, does not answer or
    refuses; FileNotFoundError only for a key that is certainly absent.
    """

    url: str

    def create(self, key: str, data: bytes) -> bool:
        """Write a new object; False, and nothing is written, when there is one."""

    def put(self, key: str, data: bytes) -> None:
        """Write an object in the place of what is there: readers see the old or the new one."""

    def read(self, key: str) -> bytes:
        """All bytes of an object."""

    def read_range(self, key: str, start: int, end: int) -> bytes:
        """The bytes from ``start`` to before ``end``."""

    def state(self, key: str) -> ObjectState | None:
        """What is known of an object; None when there is none."""

    def list(
        self, prefix: str, *, deep: bool = False, limit: int | None = None
    ) -> Iterator[tuple[str, ObjectState | None]]:
        """Keys that begin with ``prefix``, in order; without ``deep`` down to the next ``/``.

        What goes on after that is a folder, whose state is None.
        """

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; those that are not there are no error."""

    def upload(self, source: Path, key: str, *, uploads: dict[str, str], progress: Progress) -> str:
        """Send a file; its tag. ``uploads`` keeps what a later call needs to go on with it."""
