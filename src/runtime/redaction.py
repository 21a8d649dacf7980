"""Streams that let no secret through: the last line of defence for what is printed."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO

from nemotron_style.runtime.secret import begun_secret, find_secrets, redact


class RedactedStream(io.TextIOBase):
    """A text stream in front of ``stream`` that masks secrets.

    The end of what was written is held back while it may be the beginning of a secret, so that
    one which arrives in two pieces is found.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.held = ""

    def write(self, text: str) -> int:
        whole = self.held + text
        # On a terminal somebody waits for the end of a line; elsewhere nobody misses it.
        cut = len(whole) - begun_secret(whole, any_word=not self.isatty())
        inside = [each.start for each in find_secrets(whole) if each.start < cut < each.end]
        cut = min([cut, *inside])
        self.held = whole[cut:]
        self.stream.write(redact(whole[:cut]))
        return len(text)

    def flush(self) -> None:
        self.stream.flush()

    def release(self) -> None:
        """Write what was held back: nothing follows."""
        held, self.held = self.held, ""
        self.stream.write(redact(held))
        self.stream.flush()

    def isatty(self) -> bool:
        return self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()

    def writable(self) -> bool:
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self.stream.errors

    def __getattr__(self, name: str) -> Any:
        # No way around: libraries that look for the bytes below a text stream find none.
        if name in ("buffer", "raw", "stream", "detach"):
            raise AttributeError(name)
        return getattr(self.stream, name)


@contextmanager
def redacted_output(stdout: TextIO, stderr: TextIO) -> Iterator[None]:
    """Within it, everything printed goes through :class:`RedactedStream`."""
    out, err = RedactedStream(stdout), RedactedStream(stderr)
    with redirect_stdout(out), redirect_stderr(err):
        try:
            yield
        finally:
            out.release()
            err.release()
