"""Draw the rooms of the package as SVG: ``python tools/site/diagrams.py`` writes ``docs/diagrams``.

Rows and their order are those of the ``layers`` contracts in ``pyproject.toml``, and what a room is
for is the first line of its docstring, so a drawing cannot say anything else than the code.
"""

from __future__ import annotations

import ast
import textwrap
import tomllib
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "diagrams"
DRAWN = {
    "rooms-runtime.svg": "nemotron_style.runtime",
    "rooms-blocks.svg": "nemotron_style.steps.blocks",
}
WIDTH, MARGIN, GAP = 860, 10, 12
LINE, CHARACTER = 17, 6.9  # pixels, of the small text
# Beside its own page a drawing takes the colours of the site; alone it asks the browser.
STYLE = """\
svg {
  --ink: var(--color-foreground-primary, #16191d);
  --dim: var(--color-foreground-muted, #59636e);
  --box: var(--color-background-secondary, #f4f6f8);
  --edge: var(--color-foreground-border, #8b949e);
}
@media (prefers-color-scheme: dark) {
  svg {
    --ink: var(--color-foreground-primary, #e6edf3);
    --dim: var(--color-foreground-muted, #9da7b3);
    --box: var(--color-background-secondary, #1c2128);
    --edge: var(--color-foreground-border, #6e7681);
  }
}
rect { fill: var(--box); stroke: var(--edge); }
text { fill: var(--dim); font: 13px system-ui, sans-serif; }
.name { fill: var(--ink); font-weight: 600; }
"""


def main() -> None:
    """Write every drawing."""
    FOLDER.mkdir(exist_ok=True)
    for name, container in DRAWN.items():
        (FOLDER / name).write_text(draw_rooms(container), encoding="utf-8")


def draw_rooms(container: str) -> str:
    """The rooms of a package, one row a layer; each row may import those below it."""
    rows, height, parts = read_layers(container), MARGIN, []
    for row in rows:
        width = (WIDTH - 2 * MARGIN - (len(row) - 1) * GAP) / len(row)
        purposes = [wrap(read_purpose(container, room), width) for room in row]
        box = 34 + LINE * max(map(len, purposes))
        for index, (room, lines) in enumerate(zip(row, purposes, strict=True)):
            parts += draw_box(room, lines, (MARGIN + index * (width + GAP), height, width, box))
        height += box + GAP
    what = f"Rooms of {container}, top to bottom: " + "; ".join(", ".join(row) for row in rows)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">\n'
        f"<title>{escape(what)}. A room imports only rooms below it.</title>\n"
    )
    return f"{head}<style>\n{STYLE}</style>\n" + "\n".join(parts) + "\n</svg>\n"


def draw_box(name: str, lines: list[str], place: tuple[float, float, float, float]) -> list[str]:
    """A box with the name of a room and what it is for."""
    x, y, width, height = place
    texts = [f'<text class="name" x="{x + 12:.0f}" y="{y + 21:.0f}">{escape(name)}</text>']
    for number, line in enumerate(lines, 1):
        texts.append(
            f'<text x="{x + 12:.0f}" y="{y + 21 + LINE * number:.0f}">{escape(line)}</text>'
        )
    size = f'width="{width:.0f}" height="{height:.0f}" rx="6"'
    return [f'<rect x="{x:.0f}" y="{y:.0f}" {size}/>', *texts]


def read_layers(container: str) -> list[list[str]]:
    """The rooms of each layer, the highest first; modules that stand alone share one box."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    for contract in contracts["contracts"]:
        if container in contract.get("containers", ()):
            layers = [layer.replace(":", "|").split("|") for layer in contract["layers"]]
            break
    else:
        raise LookupError(f"no layers contract in pyproject.toml is about {container}")
    rows = [[room.strip() for room in layer] for layer in layers]
    rows = [row for row in rows if row != ["__main__"]]
    is_room = [[(find_source(container) / room).is_dir() for room in row] for row in rows]
    return [
        row if any(rooms) else [", ".join(row)] for row, rooms in zip(rows, is_room, strict=True)
    ]


def read_purpose(container: str, room: str) -> str:
    """The first line of a room's docstring."""
    init = find_source(container) / room / "__init__.py"
    if not init.is_file():
        return "Single modules that every room may use."
    said = ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))) or ""
    return said.partition("\n")[0].replace("``", "")


def find_source(container: str) -> Path:
    """The folder of a package."""
    return ROOT.joinpath("src", *container.split(".")[1:])


def wrap(text: str, width: float) -> list[str]:
    """``text`` in lines that fit a box of so many pixels."""
    return textwrap.wrap(text, int((width - 20) / CHARACTER))


if __name__ == "__main__":
    main()
