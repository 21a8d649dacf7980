"""Make the site of the documentation: ``python tools/site/build.py [STORE]``, or ``make docs``.

The pages of ``docs`` are copied to ``build/docs``, together with the changelog and the guide for
contributors; links are set for there; the list of all commands is written; drawings are put into
their pages, where they take the colours of the site. With the folder of a store that holds the
demo's model, the report of it is the example. Then Sphinx runs, and every warning (a link that
leads nowhere, a page that nothing leads to) is an error. The site is ``build/docs/html``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from commands import render_commands

ROOT = Path(__file__).resolve().parents[2]
DOCS, HERE = ROOT / "docs", Path(__file__).parent
STAGED = ROOT / "build" / "docs" / "source"
SITE = STAGED.parent / "html"
OUTSIDE = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
EXAMPLE = "sft-steerlm2-tiny"
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")
IMAGE = re.compile(r"^!\[([^\]]*)\]\((\S+\.svg)\)$", re.MULTILINE)
FOREIGN = re.compile(
    r"""(?:<(?:script|img|iframe|source|video)\b[^>]*\bsrc|<link\b[^>]*\bhref|@import|url\()"""
    r"""[\s="'(]*((?:https?:)?//[^"'\s)>]+)"""
)
SECTION = re.compile(r"^## (.+)\n((?:(?!## ).*\n?)*)", re.MULTILINE)


def main(store: str = "") -> int:
    """Build the site; the exit code is that of Sphinx."""
    shutil.rmtree(STAGED.parent, ignore_errors=True)
    for page in DOCS.rglob("*.md"):
        stage(page, page.relative_to(DOCS))
    for name, staged in OUTSIDE.items():
        stage(ROOT / name, Path(staged))
    for folder in ("static", "extra"):
        (STAGED / folder).mkdir()
    shutil.copy(HERE / "style.css", STAGED / "static")
    shutil.copy(HERE / "conf.py", STAGED)
    append("commands.md", render_commands())
    append("example-report.md", make_report(store))
    append("index.md", make_contents())
    options = ["-W", "--keep-going", "-q", "-b", "html"]
    builder = [sys.executable, "-m", "sphinx", *options, str(STAGED), str(SITE)]
    code = subprocess.run(builder, check=False).returncode
    for page, place in find_foreign(SITE):
        print(f"{page}: would be loaded from another host: {place}")
        code = 1
    print(f"the site: {SITE / 'index.html'}" if code == 0 else "the site has problems, see above")
    return code


def find_foreign(site: Path) -> Iterator[tuple[Path, str]]:
    """What pages and style sheets would load from another host (a link to click loads nothing)."""
    for path in sorted([*site.rglob("*.html"), *site.rglob("*.css")]):
        for place in FOREIGN.findall(path.read_text(encoding="utf-8")):
            yield path, place


def stage(page: Path, name: Path) -> None:
    """Copy a page; links of the repository become links of the site, drawings part of the page."""
    text = page.read_text(encoding="utf-8")
    text = LINK.sub(lambda found: set_link(found, page), text)
    text = IMAGE.sub(lambda found: put_drawing(page.parent / found[2]), text)
    (STAGED / name).parent.mkdir(parents=True, exist_ok=True)
    (STAGED / name).write_text(text, encoding="utf-8")


def set_link(found: re.Match[str], page: Path) -> str:
    """A link to a page of the site; one to any other file of the repository becomes its text."""
    text, (path, hash_sign, anchor) = found[1], found[2].partition("#")
    if ":" in path or not path:
        return found[0]
    target = (page.parent / path).resolve()
    if target.parent == ROOT and target.name in OUTSIDE:
        target = DOCS / OUTSIDE[target.name]
    elif target.suffix != ".md" or not target.is_relative_to(DOCS):
        return text
    start = page.parent if page.is_relative_to(DOCS) else DOCS
    return f"[{text}]({os.path.relpath(target, start)}{hash_sign}{anchor})"


def put_drawing(path: Path) -> str:
    """A drawing as part of its page; one that is wider than a phone can be moved sideways."""
    lines = path.read_text(encoding="utf-8").splitlines()
    drawing = "\n".join(line for line in lines if line)  # an empty line would end it
    return f'<div class="drawing" tabindex="0">\n{drawing}\n</div>'


def append(name: str, text: str) -> None:
    """Add what is made anew to a page that is written by hand."""
    with open(STAGED / name, "a", encoding="utf-8") as page:
        page.write(f"\n{text}\n")


def make_contents() -> str:
    """The navigation: the links of ``docs/index.md``, by section, in their order."""
    trees = []
    for title, body in SECTION.findall((STAGED / "index.md").read_text(encoding="utf-8")):
        links = [(text, path) for text, path in LINK.findall(body) if path.endswith(".md")]
        lines = [f"{text.replace('`', '')} <{path.removesuffix('.md')}>" for text, path in links]
        trees.append(
            "\n".join(["```{toctree}", ":hidden:", f":caption: {title}", "", *lines, "```"])
        )
    return "\n\n".join(trees)


def make_report(store: str) -> str:
    """The reports of the demo, when ``store`` holds its model, and what the page says of them."""
    if not Path(store, "artifacts", EXAMPLE).is_dir():
        return "This site was built without one: `make demo docs` makes both."
    program = Path(sys.executable).with_name("nemotron-style")
    environment = os.environ | {"NEMOTRON_STYLE_HOME": store}
    # Names that no page has: files of "extra" stand beside the pages.
    pages = {f"{EXAMPLE}.html": [EXAMPLE], "demo-store.html": ["--store"]}
    for page, words in pages.items():
        command = [program, "report", *words, "-o", STAGED / "extra" / page]
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    first, second = pages
    return (
        f'<p><a href="{first}">Open it alone</a>, or <a href="{second}">the index of its store</a>'
        f' (<code>nemotron-style report --store</code>).</p>\n\n<iframe class="report" '
        f'title="The report of the demo" src="{first}"></iframe>'
    )


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
