"""Standard output and error as the command line uses them: open, and without control characters.

Names, values, log lines and a model's answers come from elsewhere. What they hold must not move
the cursor, hide a line, change the title or turn the direction of the text around.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO

from nemotron_style.runtime.control_characters import CONTROL, show_controls

# How text of ours says that something is bold; the stream knows what the terminal wants for it.
BOLD, PLAIN = "\x0e", "\x0f"
CODES = {BOLD: "\x1b[1m", PLAIN: "\x1b[0m"}
WITHIN_LINE = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def one_line(text: str) -> str:
    """``text`` in one line, control characters written as Python writes them: ``\\x1b``."""
    return show_controls("".join(WITHIN_LINE.get(each, each) for each in text))


def escape_json(text: str) -> str:
    """JSON text that means the same and holds no control character."""
    return CONTROL.sub(lambda found: _as_json(found[0]), text)


def _as_json(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


class VisibleStream(io.TextIOBase):
    """A text stream in front of ``below`` that writes control characters out.

    Lines that end in a carriage return, as bars of progress do, end in a newline.
    """

    def __init__(self, below: TextIO) -> None:
        self.below = below
        self._after_return = False

    def write(self, text: str) -> int:
        shown = text.removeprefix("\n") if self._after_return else text
        self._after_return = text.endswith("\r")
        if not shown.isprintable():
            shown = shown.replace("\r\n", "\n").replace("\r", "\n")
            pieces = re.split(f"([{BOLD}{PLAIN}])", shown) if self.isatty() else [shown]
            shown = "".join(CODES.get(piece) or show_controls(piece) for piece in pieces)
        self.below.write(shown)
        return len(text)

    def flush(self) -> None:
        self.below.flush()

    def isatty(self) -> bool:
        return self.below.isatty()

    def fileno(self) -> int:
        return self.below.fileno()

    def writable(self) -> bool:
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.below.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self.below.errors

    def __getattr__(self, name: str) -> Any:
        return getattr(self.below, name)


@contextmanager
def visible_output() -> Iterator[None]:
    """Within it, everything printed goes through :class:`VisibleStream`."""
    with redirect_stdout(VisibleStream(sys.stdout)), redirect_stderr(VisibleStream(sys.stderr)):
        yield


def unfiltered(stream: TextIO) -> TextIO:
    """Where control characters of our own go: colours, and the line of progress."""
    return stream.below if isinstance(stream, VisibleStream) else stream


def write_exactly(stream: TextIO, text: str) -> None:
    """Write ``text`` as it is; on a terminal, with its control characters written out."""
    (stream if stream.isatty() else unfiltered(stream)).write(text)


def open_standard_files() -> None:
    """Open ``/dev/null`` where standard input or error was closed.

    The next file that is opened would else take its number, and get what is meant for it.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        # What a terminal's encoding lacks is written out, and no reason to fail.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def discard_output(stream: TextIO) -> None:
    """Let what could not be written go to ``/dev/null``; Python would try again at its end."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except (OSError, ValueError):  # it is no file
        return
