"""The reports of real tiny runs, in a real browser: what a person who opens one sees."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from browser import CHROMIUM, NEEDS_CHROMIUM, run_browser
from nemotron_style.runtime.report.collect import collect_facts
from nemotron_style.runtime.report.document import render_report
from nemotron_style.runtime.report.page.check import check_report
from nemotron_style.runtime.report.subject import find_subject
from nemotron_style.runtime.store.store import Store
from tiny_runs import MODELS, unpack_store

pytestmark = pytest.mark.skipif(not CHROMIUM, reason=NEEDS_CHROMIUM)

MOST_BYTES = 2 << 20
MOST_ELEMENTS = 8000
"""They take Chromium a fifth of a second to parse, style and lay out (two cores of an AMD EPYC)."""
READABLE = 4.5
"""Contrast of text to what is behind it (WCAG 2.2, level AA)."""

WORDS = {
    "rlhf": (
        "Better than sft-chat-tiny_careless:v1.",
        "72.8% of matches against sft-chat-tiny_careless:v1 (95% interval 69.1% to 76.2%)",
        "141 wins, 138 ties, 9 losses",
        "model preferred",
        "the truth agrees",
        "First: muddy fits. Second: playful wrong.",
        "A group of the last step (48)",
        "training makes it less likely",
        "later preferred",
    ),
    "steerlm2": (
        "Better than sft-chat-tiny:v1.",
        "+24.1 points over sft-chat-tiny:v1 (95% interval +21.4 to +26.8; 70.8% against 46.6%)",
        "✓ as asked: helpfulness 0, verbosity 0",
        "Weights of held-out group 1",
        "b at the start",
        "w is above b at the start: raised",
    ),
}

# The colour of each text and of the nearest background behind it, as numbers.
COLOURS = """(() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const paint = (colour) => { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); };
  const read = () => [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  const hasText = (each) => [...each.childNodes].some((one) =>
    one.nodeType === Node.TEXT_NODE && one.data.trim());
  const isShown = (each) => each.checkVisibility() && hasText(each)
    && !each.closest("script, .skip, .hidden, svg");
  return [...document.querySelectorAll("body *")].filter(isShown).map((each) => {
    paint("white");
    const behind = [];
    for (let one = each; one; one = one.parentElement) behind.unshift(one);
    behind.forEach((one) => paint(getComputedStyle(one).backgroundColor));
    const back = read();
    paint(getComputedStyle(each).color);
    return [`${each.tagName} ${each.className}`, read(), back];
  });
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with run_browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture(scope="module", params=sorted(MODELS))
def tiny(request, tmp_path_factory):
    """The name of a tiny run, its store and its report."""
    folder = tmp_path_factory.mktemp(request.param)
    store = unpack_store(request.param, folder)
    page = folder / "report.html"
    page.write_text(render_report(collect_facts(store, find_subject(store, MODELS[request.param]))))
    return request.param, store, page


def check(browser) -> str:
    browser.evaluate("document.getElementById('check').click()")
    return str(browser.evaluate("document.getElementById('result').textContent"))


def test_it_is_small_asks_for_nothing_opens_at_once_and_is_whole(browser, tiny):
    _, store, page = tiny
    assert page.stat().st_size < MOST_BYTES
    assert all(each.is_fine for each in check_report(page, store))
    browser.open(page)
    assert browser.evaluate("document.querySelectorAll('*').length") < MOST_ELEMENTS
    assert re.fullmatch(
        r"✓ The page and all \d+ records are as they were written\.", check(browser)
    )
    assert (browser.requests, browser.complaints) == ([page.as_uri()], [])


def test_it_can_be_read_without_scripts(browser, tiny):
    name, _, page = tiny
    browser.open(page, scripts=False)
    text = browser.evaluate("document.body.textContent").replace("\n", " ")
    missing = [words for words in WORDS[name] if words not in text]
    assert missing == []
    assert browser.evaluate("document.getElementById('check').hidden")
    assert browser.complaints == []


@pytest.mark.parametrize("old", ["95% interval", "<td", 'class="headline"', 'M1 5H21"', "sha256:"])
def test_the_button_finds_a_changed_byte_anywhere(browser, tiny, old):
    _, store, page = tiny
    changed = page.with_name("changed.html")
    text = page.read_text()
    at = text.index(old, text.index("<body>")) + 2
    other = "x" if text[at] != "x" else "y"
    changed.write_text(text[:at] + other + text[at + 1 :])
    browser.open(changed)
    assert check(browser).startswith("✗ ")
    assert not all(each.is_fine for each in check_report(changed, store))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_desk_and_a_phone_and_its_text_stands_out(browser, tiny, scheme):
    _, _, page = tiny
    browser.open(page)
    browser.prefer(scheme)
    browser.evaluate("document.querySelectorAll('details').forEach((each) => each.open = true)")
    for width in (1280, 390):
        browser.resize(width)
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        found = browser.evaluate(COLOURS)
        assert len(found) > 300
        faint = {name for name, ink, paper in found if contrast(ink, paper) < READABLE}
        assert faint == set()


def contrast(ink, paper) -> float:
    """WCAG's ratio of the luminances of two colours."""
    high, low = sorted((luminance(ink), luminance(paper)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def luminance(colour) -> float:
    parts = [each / 255 for each in colour]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_the_report_of_the_demo_is_one_of_these(browser, tmp_path):
    """What ``make demo`` made a while ago, where it has run."""
    root = Path(__file__).parents[2] / ".nemotron-style"
    model = Store(root).find("sft-steerlm2-tiny:v1") if root.is_dir() else None
    if model is None:
        pytest.skip("needs the store of `make demo`")
    store = Store(root)
    page = tmp_path / "demo.html"
    page.write_text(render_report(collect_facts(store, find_subject(store, model.ref))))
    assert page.stat().st_size < MOST_BYTES
    browser.open(page)
    assert check(browser).startswith("✓ The page and all ")
    assert (browser.requests, browser.complaints) == ([page.as_uri()], [])
    assert "Better than sft-chat-tiny:v1." in browser.evaluate("document.body.innerText")
