"""The documentation can be read: links lead somewhere, pages are found, drawings are current."""

from __future__ import annotations

import re
import runpy
from functools import cache
from pathlib import Path

import pytest

from nemotron_style.runtime.run import state

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*(ROOT / "docs").rglob("*.md"), *(ROOT / f"{n}.md" for n in ("README", "CONTRIBUTING"))]
)
FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
diagrams = runpy.run_path(str(ROOT / "tools" / "site" / "diagrams.py"))


@cache
def anchors_of(page: Path) -> set[str]:
    """The anchors of a page's headings, as the hosts of repositories make them."""
    headings = HEADING.findall(FENCE.sub("", page.read_text(encoding="utf-8")))
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    return {re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-") for text in plain}


def links_of(page: Path) -> list[str]:
    return LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8")))


def test_every_link_leads_to_a_file_and_to_a_heading_of_it() -> None:
    broken = []
    for page in PAGES:
        for link in links_of(page):
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            if ":" in link or (target.exists() and not anchor):
                continue
            if not target.is_file() or anchor not in anchors_of(target):
                broken.append(f"{page.relative_to(ROOT)}: {link}")
    assert broken == []


def test_the_navigation_names_every_page() -> None:
    index = ROOT / "docs" / "index.md"
    named = {(index.parent / link).resolve() for link in links_of(index)}
    assert set((ROOT / "docs").rglob("*.md")) - named - {index} == set()


@pytest.mark.parametrize("name", diagrams["DRAWN"])
def test_the_drawings_show_the_rooms_of_today(name: str) -> None:
    drawn = (ROOT / "docs" / "diagrams" / name).read_text(encoding="utf-8")
    assert drawn == diagrams["draw_rooms"](diagrams["DRAWN"][name]), "run tools/site/diagrams.py"


def test_the_drawing_of_a_run_has_every_state() -> None:
    drawn = (ROOT / "docs" / "diagrams" / "run-states.svg").read_text(encoding="utf-8")
    states = {word for word in vars(state) if word.isupper() and word != "FINAL"}
    assert {word for word in states if f">{word}<" not in drawn} == set()


def test_the_page_of_commands_has_all_of_them_with_their_options() -> None:
    render = runpy.run_path(str(ROOT / "tools" / "site" / "commands.py"))["render_commands"]
    page = render()
    for command in ("steps run", "runs why", "artifacts lineage", "profiles check"):
        assert f"### nemotron-style {command}\n" in page
    assert "| `--dry-run" in page or "| `-d, --dry-run" in page
