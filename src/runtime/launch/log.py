"""Logs that are read while they are written."""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable, Iterator
from pathlib import Path


class LogReader:
    """A file that grows, may not be there yet, and may be on another machine's disk."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0
        # Keeps the bytes of a character that is half written until the rest is there.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def read(self) -> str:
        """What was written since the last call."""
        try:
            with open(self._path, "rb") as file:  # opened anew: else NFS may show old content
                file.seek(self._offset)
                new = file.read()
        except OSError:
            return ""
        self._offset += len(new)
        return self._decoder.decode(new)


class Question:
    """Asks ``over`` at most every ``seconds``, because each call costs one over the network.

    ``hint`` is a cheap sign that the answer may be yes, and makes it ask at once.
    """

    def __init__(
        self, over: Callable[[], bool], *, seconds: float, hint: Callable[[], bool] = lambda: False
    ) -> None:
        self._over, self._seconds, self._hint = over, seconds, hint
        self._asked = float("-inf")
        self._answer = False

    def __call__(self) -> bool:
        due = time.monotonic() - self._asked >= self._seconds
        if not self._answer and (due or self._hint()):
            self._asked = time.monotonic()
            self._answer = self._over()
        return self._answer


def follow_file(path: Path, *, over: Callable[[], bool], pause: float) -> Iterator[str]:
    """Text as it is written, until the job is ``over``; "" when nothing is new, then a pause."""
    reader = LogReader(path)
    while True:
        ended = over()  # before reading, so that everything written by then is read
        text = reader.read()
        yield text
        if ended and not text:
            return
        if not text:
            time.sleep(pause)
