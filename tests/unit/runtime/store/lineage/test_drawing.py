"""Drawings for Mermaid and Graphviz: whatever a name holds, it stays inside of its label."""

from __future__ import annotations

import re
from html import unescape

from hypothesis import example, given
from hypothesis import strategies as st

from nemotron_style.runtime.store.lineage.drawing import render_dot, render_mermaid
from nemotron_style.runtime.store.lineage.graph import Lineage, Link, Node

HOSTILE = st.text(st.characters() | st.sampled_from('"\\\n\r\t[]{}()|<>#&;%`-=\x1b\u2028\u202e'))
MERMAID = re.compile(r'    (?:n\d+\["([^"\n]*)"\]|n\d+ -->\|"([^"\n]*)"\| n\d+)')
DOT = re.compile(r'    n\d+(?: -> n\d+)? \[label="((?:[^"\\]|\\.)*)"\];')


def draw(ref: str, kind: str, slot: str) -> Lineage:
    graph = Lineage("root")
    graph.add(Node("root", "k", "sha256:0", None))
    graph.add(Node(ref, kind, "sha256:1", None))
    graph.link(Link(slot, ref, "root"))
    return graph


def show(text: str) -> str:
    """What a reader should see of a name."""
    spaces = re.sub(r"\s", " ", text)
    return "".join(each if each.isprintable() else "\ufffd" for each in spaces)


@given(HOSTILE, HOSTILE, HOSTILE)
@example('a"]; click n0 "javascript:x"', "%%{init: {}}%%", "end")
@example("`**bold**`", "#quot;", '"')
def test_no_name_ends_its_label_in_mermaid(ref: str, kind: str, slot: str) -> None:
    head, *lines = render_mermaid(draw("x" + ref, kind, slot)).split("\n")
    found = [MERMAID.fullmatch(line) for line in lines]
    assert head == "flowchart LR"
    assert all(found)
    assert len(found) == 3
    text = "\n".join(lines)
    assert not re.search(r"%%|`|<(?!br/>)", text)
    plain = [re.sub(r"#(\d+);", lambda each: chr(int(each[1])), m[1] or m[2] or "") for m in found]
    label = plain[1].split("<br/>")
    assert [unescape(label[0]), unescape(label[1])] == [show("x" + ref), show(kind)]
    assert unescape(plain[2]) == show(slot)


@given(HOSTILE, HOSTILE, HOSTILE)
@example('a\\"]; node [shape=none', "\\", "\\N")
def test_no_name_ends_its_label_in_dot(ref: str, kind: str, slot: str) -> None:
    lines = render_dot(draw("x" + ref, kind, slot)).split("\n")
    assert lines[:3] == ["digraph lineage {", "    rankdir=LR;", "    node [shape=box];"]
    assert lines[-1] == "}"
    found = [DOT.fullmatch(line) for line in lines[3:-1]]
    assert all(found)
    assert len(found) == 3
    # In a label "\n" is a new line, and a backslash before another character is left out.
    label = [re.sub(r"\\(.)", r"\1", each) for each in re.split(r"(?<!\\)\\n", found[1][1])]
    if "\\" not in ref + kind:
        assert label[:2] == [show("x" + ref), show(kind)]
    assert re.sub(r"\\(.)", r"\1", found[2][1]) == show(slot)
