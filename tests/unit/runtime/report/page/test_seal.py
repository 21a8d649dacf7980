"""A page's seals find every change that a reader could see."""

from __future__ import annotations

import pytest

from nemotron_style.runtime.report.page.seal import BLANK, is_sealed, seal_page, write_content

PAGE = f"""<!doctype html>
<html lang="en"><head>
<meta name="seal" content="{BLANK}">
<meta name="content-seal" content="{BLANK}">
<style>p {{ color: red }}</style></head>
<body><p class="a" hidden>1 &lt; 2<br>x</p><svg viewBox="0 0 1 1"><path d="M0 0"/></svg>
<pre>
code</pre><script>if (1 < 2) x();</script></body></html>
"""


def test_the_content_is_what_a_browser_makes_of_the_page():
    assert write_content(PAGE) == (
        "<html lang=en><head>\n<meta name=seal></meta>\n<meta name=content-seal></meta>\n"
        "<style>p { color: red }</style></head>"
        "<body><p class=a hidden=>1 < 2<br></br>x</p>"
        "<svg viewbox=0 0 1 1><path d=M0 0></path></svg>\n<pre>code</pre>"
        "<script>if (1 < 2) x();</script></body></html>"
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [("1 &lt; 2", "1 &lt; 3"), ("red", "tan"), ("M0 0", "M0 1"), (" hidden", ""), ("<br>", "<hr>")],
)
def test_a_change_that_can_be_seen_changes_the_content(old, new):
    changed = PAGE.replace(old, new)
    assert changed != PAGE
    assert write_content(changed) != write_content(PAGE)


def test_a_seal_is_of_every_byte():
    page = seal_page(PAGE)
    assert BLANK not in page
    assert is_sealed(page)
    assert not is_sealed(page.replace('class="a"', 'class="a" '))
    assert write_content(page) == write_content(PAGE)
    assert not is_sealed("<p>no seal</p>")
