"""Texts with their secrets masked, and streams that let none through.

This is the last line of defence for what is printed; what is stored is refused before.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO

from nemotron_style.runtime.secrets.detect import find_secrets, secret_values
from nemotron_style.runtime.secrets.names import is_secret_key

MASK = "[secret]"
_UNFINISHED = re.compile(r":/?\Z|(?:://|\bhf_|\bgh[pousr]_|github_pat_|nvapi-|\bsk-)[^\s\"']*\Z")
_UNFINISHED_PAIR = re.compile(r"(?<![\w.-])(?P<name>[A-Za-z_][\w.-]*)\s?=\s?[^\s\"']*\Z")
_LAST_WORD = re.compile(r"(?<!\S)\S+\Z")
_WINDOW = 4096  # no more of the end of a text is ever held back


def redact(text: str) -> str:
    """``text`` with every secret replaced by a mask."""
    spans = sorted((each.start, each.end) for each in find_secrets(text))
    if not spans:
        return text
    parts, done = [], 0
    for start, end in spans:
        if start >= done:
            parts += [text[done:start], MASK]
        done = max(done, end)
    return "".join([*parts, text[done:]])


def redact_leaves(values: Any) -> Any:
    """Plain data with the secrets in its texts masked; tuples become lists."""
    if isinstance(values, str):
        return redact(values)
    if isinstance(values, Mapping):
        return {key: redact_leaves(item) for key, item in values.items()}
    if isinstance(values, list | tuple):
        return [redact_leaves(item) for item in values]
    return values


def unfinished_secret(text: str, *, any_word: bool = False) -> int:
    """How many characters at the end of ``text`` may be the beginning of a secret.

    With ``any_word`` the last word may be one, whatever it looks like so far.
    """
    text = text[-_WINDOW:]
    form, pair = _UNFINISHED.search(text), _UNFINISHED_PAIR.search(text)
    longest = len(text) - form.start() if form else 0
    if any_word and (word := _LAST_WORD.search(text)):
        longest = max(longest, len(text) - word.start())
    if pair and is_secret_key(pair["name"]):
        longest = max(longest, len(text) - pair.start())
    for value in secret_values():
        most = min(len(value) - 1, len(text))
        sizes = (size for size in range(most, longest, -1) if text.endswith(value[:size]))
        longest = max(longest, next(sizes, 0))
    return longest


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
        cut = len(whole) - unfinished_secret(whole, any_word=not self.isatty())
        # A whole secret is not cut in two either: masked apart, its halves would show.
        cut = min([cut, *(s.start for s in find_secrets(whole) if s.start < cut < s.end)])
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
