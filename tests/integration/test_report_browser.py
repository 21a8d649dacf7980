"""A report in a real browser: it asks for nothing, complains of nothing, and checks itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from browser import CHROMIUM, NEEDS_CHROMIUM, Browser, run_browser
from nemotron_style.runtime.report.catalogue import collect_catalogue, render_catalogue
from nemotron_style.runtime.report.collect import collect_facts
from nemotron_style.runtime.report.comparison.compare import compare_subjects, render_comparison
from nemotron_style.runtime.report.document import render_report
from nemotron_style.runtime.report.subject import describe_artifact
from nemotron_style.runtime.store.store import Store
from report_world import make_store
from waiting import until

pytestmark = pytest.mark.skipif(not CHROMIUM, reason=NEEDS_CHROMIUM)

MOST_ELEMENTS = 2000


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with run_browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """The report of a store whose every text tries to run a script and to load an image."""
    folder = tmp_path_factory.mktemp("report")
    store, tuned = make_store(folder / "store")
    path = folder / "report.html"
    path.write_text(render_report(collect_facts(store, describe_artifact(store, tuned))))
    return path


def check_records(browser: Browser) -> str:
    browser.evaluate("document.getElementById('check').click()")
    return str(browser.evaluate("document.getElementById('result').textContent"))


def test_a_report_asks_for_nothing_and_complains_of_nothing(browser, report):
    browser.open(report)
    assert browser.requests == [report.as_uri()]
    assert browser.complaints == []
    assert browser.evaluate("document.title") == "tuned:v1: report"
    assert browser.evaluate("document.images.length") == 0
    assert browser.evaluate("document.scripts.length") == 2
    # Fast to open: what is parsed, styled and laid out is not much.
    assert browser.evaluate("document.querySelectorAll('*').length") < MOST_ELEMENTS


def test_what_gets_into_a_page_all_the_same_can_neither_run_nor_load(browser, report):
    browser.open(report)
    evil = "<img src='https://example.com/a.png' onerror='document.title=1'>"
    browser.evaluate(f'document.body.insertAdjacentHTML("beforeend", "{evil}")')
    browser.evaluate("(async () => { await fetch('https://example.com').catch(() => 0); })()")

    def is_refused() -> bool:  # the image, the script in its attribute, and the request
        browser.evaluate("0")  # what the page has complained of comes with the answer
        return sum("Content Security Policy" in each for each in browser.complaints) >= 3

    until(is_refused)
    assert browser.evaluate("document.title") == "tuned:v1: report"


def test_the_button_finds_no_change_in_a_report_as_written(browser, report):
    browser.open(report)
    assert check_records(browser) == "✓ The page and all 5 records are as they were written."


def test_the_button_finds_a_changed_byte(browser, report):
    changed = report.with_name("changed.html")
    text = report.read_text()
    begin = text.index('id="data"')
    at = text.index("sft/chat", text.index("base:v1", begin))
    changed.write_text(f"{text[:at]}sft/chab{text[at + 8 :]}")
    browser.open(changed)
    assert check_records(browser) == "✗ 1 of 5 records changed: base:v1."
    assert browser.evaluate("document.querySelectorAll('td.state.worse').length") == 1


def test_answers_can_be_filtered(browser, report):
    browser.open(report)
    browser.evaluate("document.getElementById('filter').value = 'QUESTION 1'")
    browser.evaluate("document.getElementById('filter').dispatchEvent(new Event('input'))")
    assert browser.evaluate("document.getElementById('found').textContent") == "1 of 5"


def test_a_report_can_be_read_without_scripts_and_on_a_phone(browser, report):
    browser.open(report, scripts=False)
    text = browser.evaluate("document.body.innerText")
    for words in ("Better than base:v1.", "new answer 0", "old answer 0", "70%", "60% to 80%"):
        assert words in text
    assert browser.evaluate("document.getElementById('check').hidden")
    assert browser.complaints == []
    browser.resize(390)
    # Nothing is wider than the screen: what is wide scrolls in a box of its own.
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_parts_have_names_and_can_be_reached_by_keyboard(browser, report):
    browser.open(report)
    unnamed = """[...document.querySelectorAll("svg[role=img]")]
        .filter((each) => !each.querySelector(":scope > title")).length"""
    assert browser.evaluate(unnamed) == 0
    assert browser.evaluate("document.querySelectorAll('th:not([scope])').length") == 0
    landmarks = "document.querySelectorAll('header, nav, main, footer').length"
    assert browser.evaluate(landmarks) == 4
    targets = """[...document.querySelectorAll("nav a, .skip")]
        .every((each) => document.querySelector(each.getAttribute("href")))"""
    assert browser.evaluate(targets)
    # Sections carry the names of their headings.
    named = """[...document.querySelectorAll("section")]
        .every((each) => document.getElementById(each.getAttribute("aria-labelledby")))"""
    assert browser.evaluate(named)


@pytest.mark.parametrize("name", ["comparison", "store"])
def test_a_page_for_many_holds_all_of_that_too(browser, report, name):
    store = Store(report.parent / "store")
    page = report.with_name(f"{name}.html")
    if name == "store":
        page.write_text(render_catalogue(collect_catalogue(store)))
    else:
        page.write_text(render_comparison(compare_subjects(store, ["tuned", "base"])))
    browser.open(page)
    assert (browser.requests, browser.complaints) == ([page.as_uri()], [])
    assert "stolen" not in browser.evaluate("document.title")
    assert browser.evaluate("document.images.length") == 0
    assert check_records(browser).startswith("✓ The page and all ")
    assert browser.evaluate("document.querySelectorAll('th:not([scope])').length") == 0
    browser.resize(390)
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390
