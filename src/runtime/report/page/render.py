"""A page of one file: templates, style and script of this package, and the words of a store.

Whatever stands in a store was written by somebody else, a model above all. So every value is
escaped, control characters are written out, a template that names what it was not given fails,
and the page's policy allows exactly one style sheet and one script, by their hashes: nothing is
loaded, nothing is sent, and no script of a sample ever runs.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from nemotron_style.runtime.control_characters import show_controls
from nemotron_style.runtime.units import format_duration, format_number, format_size

TEMPLATES = Path(__file__).parents[1] / "templates"


def render_page(template: str, *, script: str = "", **values: Any) -> str:
    """The text of a whole page; ``template`` extends ``base.html.j2``.

    ``script`` names a file of this package's templates. Without it no script can run at all.
    """
    style, code = read_asset("style.css"), read_asset(script) if script else Markup("")
    policy = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; "
        f"style-src {_allow(style)}; script-src {_allow(code)}"
    )
    return str(render_fragment(template, style=style, script=code, policy=policy, **values))


def render_fragment(template: str, **values: Any) -> Markup:
    """A part of a page: what a template makes of some values, every one of them escaped."""
    return Markup(_environment().get_template(template).render(values))


@functools.cache
def read_asset(name: str) -> Markup:
    """A style sheet or script of this package, which stands in the page as it is."""
    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_show,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": format_number,
        "size": format_size,
        "duration": format_duration,
        "short": shorten_digest,
        "minute": show_minute,
    }
    return environment


def shorten_digest(digest: str) -> str:
    """The first digits of a digest, enough for a person to tell two apart."""
    return digest.removeprefix("sha256:")[:12]


def show_minute(created: str) -> str:
    """The date and minute of a time as records have it (ISO 8601, UTC)."""
    return f"{created[:16].replace('T', ' ')} UTC"


def _show(value: Any) -> Any:
    """A value as it is printed: markup of ours as it is, other text without control characters."""
    return show_controls(value) if isinstance(value, str) and not _is_markup(value) else value


def _is_markup(value: Any) -> bool:
    return hasattr(value, "__html__")


def _allow(content: str) -> str:
    """What a policy says to allow exactly this inline content, or none."""
    if not content:
        return "'none'"
    digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    return f"'sha256-{digest}'"
