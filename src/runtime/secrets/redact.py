"""Texts with their secrets masked, and streams that let none through.

This is the last line of defence for what is printed; what is stored is refused before.
"""

from __future__ import annotations

import codecs
import errno
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, Any, TextIO

from nemotron_style.runtime.errors import OutputError, Problem
from nemotron_style.runtime.secrets.detect import find_secrets, secret_values
from nemotron_style.runtime.secrets.names import is_secret_key

if TYPE_CHECKING:
    from typing_extensions import Buffer

MASK = "[secret]"
_UNFINISHED = re.compile(r":/?\Z|(?:://|\bhf_|\bgh[pousr]_|github_pat_|nvapi-|\bsk-)[^\s\"']*\Z")
_UNFINISHED_PAIR = re.compile(r"(?<![\w.-])(?P<name>[A-Za-z_][\w.-]*)[ \t]?=[ \t]?[^\s\"']*\Z")
_KEY_BLOCK = "-----BEGIN "
_WINDOW = 8192  # no more of the end of a text is ever held back: as much as a private key has


def redact(text: str) -> str:
    """``text`` with every secret replaced by a mask."""
    return mask(text, find_spans(text))


def find_spans(text: str) -> list[tuple[int, int]]:
    """Where secrets begin and end, in their order; those that overlap are one."""
    spans: list[tuple[int, int]] = []
    for start, end in sorted((each.start, each.end) for each in find_secrets(text)):
        if spans and start < spans[-1][1]:
            spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
        else:
            spans.append((start, end))
    return spans


def mask(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """``text`` with a mask in place of each of ``spans``."""
    parts, done = [], 0
    for start, end in spans:
        parts += [text[done:start], MASK]
        done = end
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


def unfinished_secret(text: str, *, whole_lines: bool = False) -> int:
    """How many characters at the end of ``text`` may be the beginning of a secret.

    With ``whole_lines`` a line that has not ended may be one, whatever it looks like so far.
    """
    text = text[-_WINDOW:]
    if whole_lines:
        longest = len(text) - (text.rfind("\n") + 1)
    else:
        longest = _unfinished_line(text) if text and text[-1] != "\n" else 0
    block = text.rfind(_KEY_BLOCK)
    if block >= 0 and "PRIVATE KEY" in text[block:] and "-----END" not in text[block:]:
        longest = max(longest, len(text) - block)
    for value in secret_values():
        if whole_lines and "\n" not in value:
            continue  # it begins and ends in one line
        most = min(len(value) - 1, len(text))
        sizes = (size for size in range(most, longest, -1) if text.endswith(value[:size]))
        longest = max(longest, next(sizes, 0))
    return longest


def _unfinished_line(text: str) -> int:
    line = text[text.rfind("\n") + 1 :]
    form, pair = _UNFINISHED.search(line), _UNFINISHED_PAIR.search(line) if "=" in line else None
    longest = len(line) - form.start() if form else 0
    if pair and is_secret_key(pair["name"]):
        longest = max(longest, len(line) - pair.start())
    return longest


class RedactedStream(io.TextIOBase):
    """A text stream in front of ``stream`` that masks secrets.

    The end of what was written is held back while it may be the beginning of a secret, so that
    one which arrives in two pieces is found. Raises OutputError where ``stream`` takes no more.
    """

    def __init__(self, stream: TextIO, label: str = "output") -> None:
        self.stream, self.label = stream, label
        self.held = ""
        self._buffer: RedactedBytes | None = None

    def write(self, text: str) -> int:
        whole = self.held + text
        # On a terminal somebody waits for the end of a line; elsewhere nobody misses it.
        cut = len(whole) - unfinished_secret(whole, whole_lines=not self.isatty())
        if cut == 0:
            self.held = whole
            return len(text)
        spans = find_spans(whole)
        # A whole secret is not cut in two either: masked apart, its halves would show.
        cut = min([cut, *(start for start, end in spans if start < cut < end)])
        self.held = whole[cut:]
        self._send(mask(whole[:cut], [span for span in spans if span[0] < cut]))
        return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError as error:
            raise self._refusal(error) from error

    def release(self) -> None:
        """Write what was held back: nothing follows."""
        if self._buffer is not None:
            self._buffer.finish()
        held, self.held = self.held, ""
        self._send(redact(held))
        self.flush()

    def _send(self, text: str) -> None:
        try:
            self.stream.write(text)
        except OSError as error:
            raise self._refusal(error) from error

    def _refusal(self, error: OSError) -> OutputError:
        problem = Problem(where=self.label, what=f"cannot be written: {error.strerror}")
        return OutputError(problem, was_left=error.errno == errno.EPIPE)

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
        # No way around the mask, but for who writes to the file descriptor.
        if name in ("raw", "stream", "detach"):
            raise AttributeError(name)
        return getattr(self.stream, name)

    @property
    def buffer(self) -> RedactedBytes:
        """Takes what is printed as bytes, and masks it alike."""
        if self._buffer is None:
            self._buffer = RedactedBytes(self)
        return self._buffer


class RedactedBytes(io.BufferedIOBase):
    """The bytes below a :class:`RedactedStream`: text in UTF-8, and ``\\xff`` for what is none."""

    def __init__(self, text: RedactedStream) -> None:
        self.text = text
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")

    def write(self, data: Buffer, /) -> int:
        view = memoryview(data)
        self.text.write(self._decoder.decode(view))
        return view.nbytes

    def finish(self) -> None:
        """Write the bytes of a character that was not completed."""
        self.text.write(self._decoder.decode(b"", final=True))

    def flush(self) -> None:
        self.text.flush()

    def close(self) -> None:
        """Nothing: a wrapper around it closes it when it goes, and others still print."""

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self.text.isatty()

    def fileno(self) -> int:
        return self.text.fileno()


@contextmanager
def redacted_output(stdout: TextIO, stderr: TextIO) -> Iterator[None]:
    """Within it, everything printed goes through :class:`RedactedStream`."""
    out = RedactedStream(stdout, "standard output")
    err = RedactedStream(stderr, "standard error")
    with redirect_stdout(out), redirect_stderr(err):
        try:
            yield
        finally:
            try:
                out.release()
            finally:
                err.release()
