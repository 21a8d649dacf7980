"""The records in a page: their exact text, each with its hash.

The hashes let the page find by itself a record that was changed. Whoever changes a record and its
hash, and writes new seals, is found out by a comparison with the store
(:mod:`nemotron_style.runtime.report.page.check`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from markupsafe import Markup

from nemotron_style.runtime.errors import ArtifactError
from nemotron_style.runtime.report.page.render import render_page
from nemotron_style.runtime.report.page.seal import BLANK, seal_page
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.store.digest import RECORD_NAME
from nemotron_style.runtime.store.lineage.graph import Node
from nemotron_style.runtime.store.record import read_plain, render_record
from nemotron_style.runtime.store.store import Store

SCHEMA = 1
MOST_RECORDS = 200
MOST_TEXT = 4_000_000
"""Characters of all records together."""
RECORD, PLAN = "record", "plan"


@dataclass(frozen=True)
class Document:
    """A text that the page holds: a ``record``, or the ``plan`` of a run.

    ``name`` is the ref or the run's id; ``digest`` that of an artifact's content, which its
    record names; ``sha256`` that of the text.
    """

    kind: str
    name: str
    digest: str
    sha256: str
    text: str


def embed_records(store: Store, nodes: Iterable[Node]) -> tuple[list[Document], int]:
    """The records of some artifacts, and how many more there were than a page holds."""
    known = [node for node in nodes if node.record]
    documents: list[Document] = []
    size = 0
    for node in known[:MOST_RECORDS]:
        text = read_text(store, node)
        size += len(text)
        if documents and size > MOST_TEXT:  # a record names every file, and there may be many
            break
        documents.append(make_document(RECORD, node.ref, text, node.digest))
    return documents, len(known) - len(documents)


def make_document(kind: str, name: str, text: str, digest: str = "") -> Document:
    """A text with its hash."""
    return Document(kind, name, digest, hashlib.sha256(text.encode()).hexdigest(), text)


def embed_plan(run: RunFolder) -> Document | None:
    """The sealed plan of a run; None where it cannot be read."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return make_document(PLAN, run.run_id, (run.path / "plan.json").read_bytes().decode())
    return None


def read_text(store: Store, node: Node) -> str:
    """The text of a record as it was committed; of a removed artifact, as its tombstone has it."""
    assert node.record is not None
    if not node.removed and (artifact := store.find(node.ref)):
        try:
            return read_plain(artifact.path / RECORD_NAME).decode()
        except (OSError, ArtifactError, UnicodeDecodeError):
            pass  # it is not on this disk: what is known of it is written out again
    return render_record(node.record)


def render_sealed(
    template: str, *, of: str, documents: Sequence[Document], left_out: int, **values: Any
) -> str:
    """A page that holds ``documents`` and can check them; ``template`` extends ``sealed.html.j2``.

    ``of`` names what it is about; ``left_out`` are the documents for which there was no room.
    """
    page = render_page(
        template,
        script="report.js",
        blank=BLANK,
        documents=documents,
        documents_left_out=left_out,
        data=render_data(of, documents),
        **values,
    )
    return seal_page(page)


def render_data(subject: str, documents: Iterable[Document]) -> Markup:
    """The content of the page's data element: JSON of ASCII, without ``<``, ``>`` and ``&``.

    So neither ``</script>`` nor ``<!--`` of any text can end the element or change how the rest of
    the page is read.
    """
    body = {"schema": SCHEMA, "subject": subject, "documents": [asdict(d) for d in documents]}
    text = json.dumps(body, ensure_ascii=True)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
