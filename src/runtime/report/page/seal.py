"""The two seals of a page: one over its bytes, one over what a browser makes of it.

A store checks the bytes. A page itself never sees its bytes: a browser shows it no file, not even
its own. What it does see are its elements, attributes and texts, in order, so the second seal is
over these, written out alike here and by ``report.js``. A change that makes no difference to them
(the case of a tag, a blank between two attributes) is one that no reader could see.
"""

from __future__ import annotations

import hashlib
import re
from html.parser import HTMLParser

BLANK = "0" * 64
SEAL = re.compile(r'(?<=<meta name="seal" content=")[0-9a-f]{64}(?=">)')
CONTENT_SEAL = re.compile(r'(?<=<meta name="content-seal" content=")[0-9a-f]{64}(?=">)')
VOID = frozenset(
    ("area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "wbr")
)
"""Elements of HTML that have no end tag."""


def seal_page(page: str) -> str:
    """The page with both seals, each blank where they are taken."""
    page = CONTENT_SEAL.sub(_hash(write_content(page)), page, count=1)
    return SEAL.sub(_hash(page), page, count=1)


def is_sealed(page: str) -> bool:
    """Whether a page is byte for byte the one that was written."""
    found = SEAL.search(page)
    blank = SEAL.sub(BLANK, page, count=1)
    return found is not None and found[0] == _hash(blank)


def write_content(page: str) -> str:
    """Elements, attributes and texts of a page in their order, as ``report.js`` writes them out.

    The page is one of ours: every element is closed where a browser would close it.
    """
    writer = _ContentWriter()
    writer.feed(page)
    writer.close()
    return "".join(writer.parts)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class _ContentWriter(HTMLParser):
    """Writes ``<tag`` with `` name=value`` in order and ``>``, texts, and ``</tag>``."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._open: list[str] = []
        self._begins_pre = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        if known.get("name") in ("seal", "content-seal"):
            attrs = [(name, value) for name, value in attrs if name != "content"]
        written = "".join(f" {name}={value or ''}" for name, value in attrs)
        self.parts.append(f"<{tag}{written}>")
        self._begins_pre = tag == "pre"
        if tag in VOID:
            self.parts.append(f"</{tag}>")
        else:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        self._open.pop()
        self._begins_pre = False
        self.parts.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        if self._begins_pre:
            data = data.removeprefix("\n")  # as a browser does
            self._begins_pre = False
        if self._open and self._open[-1] != "html":  # nor does it keep text beside the body
            self.parts.append(data)
