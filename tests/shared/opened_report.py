"""The report of an artifact, written by the command line and opened in a browser."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from browser import Browser, run_browser
from nemotron_style.runtime.store.record import Artifact

MOST_BYTES = 2 << 20
CHECK = "document.getElementById('check').click()"
RESULT = "document.getElementById('result').textContent"


def open_report(store: Path, artifact: Artifact, folder: Path, *words: str) -> None:
    """Fail unless the page is complete, keeps to itself, can be read, and checks itself.

    ``words`` are what its text must hold, with scripts off.
    """
    page = folder / "report.html"
    command = [sys.executable, "-m", "nemotron_style.runtime"]
    environment = os.environ | {"NEMOTRON_STYLE_HOME": str(store)}
    written = [*command, "report", artifact.ref, "-o", str(page)]
    subprocess.run(written, env=environment, check=True, timeout=120, stdout=subprocess.DEVNULL)
    assert page.stat().st_size < MOST_BYTES
    assert _verify([*command, "artifacts", "verify", str(page)], environment) == 0
    changed = folder / "changed.html"
    text = page.read_text()
    begin = text.index('"text":', text.index('id="data"'))  # of the first record
    at = text.index(artifact.digest, begin) + len("sha256:")
    changed.write_text(text[:at] + ("0" if text[at] != "0" else "1") + text[at + 1 :])
    assert _verify([*command, "artifacts", "verify", str(changed)], environment) == 1
    with run_browser(folder / "profile") as browser:
        _look(browser, page, artifact, words)
        browser.open(changed)
        browser.evaluate(CHECK)
        assert browser.evaluate(RESULT).startswith("✗ ")


def _look(browser: Browser, page: Path, artifact: Artifact, words: tuple[str, ...]) -> None:
    browser.open(page)
    browser.evaluate(CHECK)
    assert browser.evaluate(RESULT).startswith("✓ All ")
    assert (browser.requests, browser.complaints) == ([page.as_uri()], [])
    for width in (1280, 390):
        browser.resize(width)
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
    browser.open(page, scripts=False)
    text = browser.evaluate("document.body.innerText")
    for word in (artifact.ref, *words):
        assert word in text
    assert browser.complaints == []


def _verify(command: list[str], environment: dict[str, str]) -> int:
    done = subprocess.run(command, env=environment, check=False, timeout=120, capture_output=True)
    return done.returncode
