"""A lineage as a tree in text, and what is said of one artifact in it."""

from __future__ import annotations

import hashlib
import json

from nemotron_style.runtime.store.lineage.graph import Lineage, Node
from nemotron_style.runtime.store.record import Record

_SHORT = 12
_DEEPEST = 24  # levels
_INDENT = 4  # columns a level
_WIDEST = 12  # branches of one node; of more, the first ten are shown
_FIRST = 10


def render_tree(lineage: Lineage) -> str:
    """One branch a node; a node that several share is shown in full where it stands first.

    A branch deeper than ``_DEEPEST`` is continued below, at the margin: with every indent kept, the
    text of a long chain would grow with the square of its length. Of many branches the first are
    shown, and how many there are more.
    """
    # A stack instead of recursion: chains of a thousand artifacts are deeper than Python allows.
    lines: list[str] = []
    shown: set[str] = set()
    pending = [(lineage.root, "", "", "")]
    below: dict[str, None] = {}
    while pending or below:
        if not pending:
            ref = next(iter(below))
            del below[ref]
            pending.append((ref, "", "", ""))
        ref, label, head, tail = pending.pop()
        if not ref:  # in the place of branches that are folded
            lines.append(head + label)
            continue
        node = lineage.nodes[ref]
        further = lineage.beyond(ref)
        title = f"{head}{label}{ref}  {node.kind}  {short(node.digest)}"
        if ref in shown:
            lines.append(f"{title}  (shown above)")
        elif ref in below or (further and len(tail) >= _DEEPEST * _INDENT):
            lines.append(f"{title}  (continued below)")
            below[ref] = None
        else:
            shown.add(ref)
            bar = "│   " if further else "    "
            more = "  (more beyond this depth)" if ref in lineage.cut else ""
            lines += [title + more, tail + bar + describe(node)]
            pending += reversed(_branches(further, tail))
    return "\n".join(lines)


def _branches(further: list[tuple[str, str]], tail: str) -> list[tuple[str, str, str, str]]:
    named = [(ref, f"{slot}: ") for slot, ref in further]
    if len(named) > _WIDEST:
        named = [*named[:_FIRST], ("", f"+ {len(named) - _FIRST} more")]
    last = len(named) - 1
    return [
        (ref, label, tail + ("└── " if index == last else "├── "),
         tail + ("    " if index == last else "│   "))
        for index, (ref, label) in enumerate(named)
    ]  # fmt: skip


def describe(node: Node) -> str:
    """Whether it was removed, and who made it."""
    if node.record is None:
        return "no longer in the store, or its record cannot be read"
    maker = describe_maker(node.record)
    return f"{node.removed}; {maker}" if node.removed else maker


def describe_maker(record: Record) -> str:
    """Step, config, run and code that made it; or where it was adopted from."""
    if record.producer is None:
        how = "adopted by reference" if record.is_referenced else "adopted"
        return f"{how} from {record.origin.source}" if record.origin else "no producer is known"
    producer = record.producer
    made = f"{producer.step}@{producer.config_name} ({producer.run_id})"
    made += f", repeating {producer.rerun_of}" if producer.rerun_of else ""
    return f"made by {made}, code {describe_code(record)}, config {digest_config(record)}"


def describe_code(record: Record) -> str:
    """Version, short commit, and ``+changes`` when the checkout differed from its commit."""
    version, commit = record.code.get("version"), record.code.get("commit")
    parts = [str(version)] if version else []
    if commit:
        changes = "+changes" if record.code.get("difference") else ""
        parts.append(f"{str(commit)[:_SHORT]}{changes}")
    return " ".join(parts) or "unknown"


def digest_config(record: Record) -> str:
    """The first digits of the config's hash: equal exactly when the configs are."""
    text = json.dumps(record.config, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:_SHORT]


def short(digest: str) -> str:
    """The first digits of an artifact's digest."""
    return digest.removeprefix("sha256:")[:_SHORT]
