"""A page escapes what it is given and allows exactly its own style and script."""

from __future__ import annotations

import base64
import hashlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import UndefinedError

from nemotron_style.runtime.control_characters import CONTROL
from nemotron_style.runtime.report.page.render import read_asset, render_fragment, render_page

PIECES = (
    *("<script>", "</script>", "<!--", "-->", "]]>", '"', "'", "&amp;", "{{ 7 * 7 }}", "{% raw %}"),
    *("javascript:", "<img src=x onerror=a>", "\x00", "\x1b[2J", "\u202e", "\ud800"),
)
HOSTILE = st.lists(st.sampled_from(PIECES) | st.text(max_size=5)).map("".join)


@given(HOSTILE)
def test_no_text_breaks_out_of_its_place(text):
    page = render_page("base.html.j2", title=text)
    assert not re.search(r"<(script|img)", page)
    assert page.count("<!") == page.count("-->") + 1 == 1
    assert not CONTROL.search(page)
    page.encode()


def test_the_policy_allows_the_style_and_nothing_else():
    page = render_page("base.html.j2", title="a")
    style = re.search("<style>(.*?)</style>", page, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert style == read_asset("style.css")
    policy = re.search('Content-Security-Policy" content="([^"]*)"', page)[1]
    assert "default-src &#39;none&#39;" in policy
    assert f"style-src &#39;sha256-{digest}&#39;; script-src &#39;none&#39;" in policy


def test_a_template_that_names_what_it_was_not_given_fails():
    with pytest.raises(UndefinedError):
        render_fragment("base.html.j2", title="a")


def test_the_style_sheet_loads_nothing():
    assert not re.search(r"url\(|@import|http", read_asset("style.css"))
